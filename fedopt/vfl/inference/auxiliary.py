"""Features of everybody from those of a few."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from torch import Tensor

from fedopt.types import FedoptError

PENALTIES = np.logspace(-10.0, 2.0, 13)
"""α, among which the known people choose."""


def auxiliary(sent: Tensor, known: Tensor, features: Tensor) -> Tensor:
    """Guesses `[m, d]` of a party's features by a regression on what it has sent, fitted to people who are known.

        sent = A X,   X [d, K]:    A ≈ √m U_r W + 1 bᵀ,   W, b = argmin ‖A_known - √m U_r,known W - 1 bᵀ‖² + α ‖W‖²

    sent: the party's messages as columns `[m, K]`, one for each output of each exchange; U_r are its first r left
    singular vectors. known: people whose features the owner has from elsewhere `[k]`; features: theirs `[k, d]`. For
    each feature, r < k and α are chosen by leaving out one known person at a time.

    With a linear bottom network, messages of d independent weights and d + 2 people known in general position, the
    guesses are exact up to rounding. The sum of all parties' messages is no other thing, only of the rank of all
    features together: as long as fewer exchanges or known people than that are there, it is a protection.

    Reference: the equations are those of Luo, Wu, Xiao, Ooi 2021, 'Feature Inference Attack on Model Predictions in
    Vertical Federated Learning', ICDE (equality solving).

    Differences from the paper: there the attacker knows the model and no features, and solves for one person's features
    from one prediction; here it knows some people, no weights, and has messages of many exchanges.

    Raises FedoptError for people who are known without features, and for fewer than three.
    """
    if sent.dim() != 2 or features.dim() != 2 or known.shape[0] != features.shape[0] or known.shape[0] < 3:
        raise FedoptError(
            "messages `[people, K]`, and the features of three people at least, are needed;"
            f" {list(sent.shape)}, {list(known.shape)} and {list(features.shape)} were given"
        )
    basis: Tensor = torch.linalg.svd(sent.double(), full_matrices=False)[0] * sent.shape[0] ** 0.5
    truth = features.double().numpy()
    best, guess = np.full(truth.shape[1], -np.inf), np.zeros((sent.shape[0], truth.shape[1]))
    for r in range(1, min(basis.shape[1], known.shape[0] - 1) + 1):
        x = basis[:, :r].numpy()
        fitted = RidgeCV(PENALTIES, alpha_per_target=True).fit(x[known.numpy()], truth)
        better = fitted.best_score_ > best
        best = np.where(better, fitted.best_score_, best)
        guess[:, better] = fitted.predict(x).reshape(guess.shape)[:, better]
    return torch.from_numpy(guess)

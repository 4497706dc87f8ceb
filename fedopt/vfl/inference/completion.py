"""Labels by completing a party's bottom network with a head of its own."""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from fedopt.types import FedoptError

ITERATIONS = 1000
"""Of the fit at most."""


class Completed(NamedTuple):
    """What an attack says of everybody, those whose label it knew included."""

    label: Tensor
    """Class `[m]`, int64."""
    probability: Tensor
    """`[m, classes]`, the classes that are known in increasing order."""


def completion(held: Tensor, known: Tensor, labels: Tensor, *, penalty: float = 1.0) -> Completed:
    """Passive model completion: multinomial logistic regression on what a party holds, from the labels of a few people.

    held: what the party has of everybody `[m, p]`: the outputs of its trained bottom network, its features, what it
    was told, or several of these side by side; columns are brought to mean 0 and deviation 1. known: the people whose
    labels it knows `[k]`; labels: theirs `[k]`. penalty: of the head, ‖w‖² / 2 times this beside the sum of losses.

    What training gave away is the difference to the same attack on the outputs of a bottom network that was not
    trained, or on the features: with these alone, any party can learn any labels that it is told enough of.

    Reference: Fu et al. 2022, 'Label Inference Attacks Against Vertical Federated Learning', USENIX Security, the
    passive attack through model completion.

    Differences from the paper: the head alone is fitted, on the known people alone; there, bottom network and head are
    tuned together by a semi-supervised method that uses everybody.

    Raises FedoptError for labels that do not fit the people known, and for those of one class alone.
    """
    if held.dim() != 2 or known.shape != labels.shape or known.dim() != 1:
        raise FedoptError(
            "what a party holds `[people, p]`, and as many labels as people who are known, are needed;"
            f" {list(held.shape)}, {list(known.shape)} and {list(labels.shape)} were given"
        )
    if torch.unique(labels).numel() < 2:
        raise FedoptError("known labels of two classes at least are needed; one was given, let more people be known")
    spread = held.std(dim=0)
    x = ((held - held.mean(dim=0)) / torch.where(spread > 0, spread, 1.0)).double().numpy()
    head = LogisticRegression(C=1.0 / penalty, max_iter=ITERATIONS).fit(x[known.numpy()], labels.numpy())
    probability = torch.from_numpy(head.predict_proba(x))
    return Completed(torch.from_numpy(head.classes_).to(torch.int64)[probability.argmax(dim=1)], probability)

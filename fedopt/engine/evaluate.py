"""Evaluation: the server's model on the server's test set, and models on the clients' own data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fedopt import keys
from fedopt.data import Split
from fedopt.engine.loop import Executor
from fedopt.engine.memory import ClientMemory
from fedopt.problem import Problem
from fedopt.programs import predictions
from fedopt.types import Attack, Batches, Exchange, Named, Programs

PER_CLASS = 50
"""Per-class figures are given up to this number of classes."""


def on_server(problem: Problem, model: Named, split: str = "test") -> dict[str, Any]:
    """loss, and for classification accuracy, recall by class, g_mean and macro_f1, on a split of the server.

    recall_c = right_c / held_c for the classes that the split holds, null for the others; g_mean is the geometric mean
    and macro_f1 the mean of F1_c = 2 right_c / (held_c + predicted_c), both over the classes held.
    """
    if split not in problem.data.server:
        return {}
    data: Split = problem.data.server[split]
    classes = problem.data.classes
    loss, confusion = 0.0, torch.zeros(classes * classes, dtype=torch.int64)
    for outputs, y in problem.outputs(model, data):
        loss += float(problem.per_sample(outputs, y).double().sum())
        if problem.data.task == "classification":
            pairs = y.to(torch.int64).flatten() * classes + predictions(problem, outputs).flatten()
            confusion += torch.bincount(pairs, minlength=classes * classes)
    found: dict[str, Any] = {"loss": loss / max(data.y.shape[0], 1)}
    if problem.data.task == "classification":
        found |= scores(confusion.reshape(classes, classes), problem.data.class_names)
    return found


def on_backdoors(problem: Problem, model: Named, attacks: Iterable[Attack], split: str = "test") -> dict[str, float]:
    """Of each backdoor, the share of the server's samples of other classes that its trigger turns into its target."""
    found: dict[str, float] = {}
    if split not in problem.data.server:
        return found
    data = problem.data.server[split]
    for attack in attacks:
        trigger, target = attack.trigger, attack.target
        if trigger is None or target is None or attack.name in found:
            continue
        others = data.y.ne(target)
        stamped = Split(trigger(data.x[others]), data.y[others])
        called = sum(int(predictions(problem, o).eq(target).sum()) for o, _ in problem.outputs(model, stamped))
        found[attack.name] = called / max(stamped.y.shape[0], 1)
    return found


def scores(confusion: Tensor, class_names: tuple[str, ...]) -> dict[str, Any]:
    """Figures from a confusion matrix, rows true, columns predicted."""
    right = confusion.diagonal().double()
    held, predicted = confusion.sum(dim=1).double(), confusion.sum(dim=0).double()
    found: dict[str, Any] = {"accuracy": float(right.sum() / held.sum().clamp(min=1.0))}
    if len(class_names) > PER_CLASS:
        return found
    present = held > 0
    recall = (right / held)[present]
    f1 = (2.0 * right / (held + predicted))[present]
    by_class: dict[str, float | None] = dict.fromkeys(class_names)
    names = [name for name, there in zip(class_names, present.tolist(), strict=True) if there]
    by_class.update(zip(names, recall.tolist(), strict=True))
    g_mean = float(recall.clamp(min=0.0).log().mean().exp()) if recall.numel() else 0.0
    return {**found, "recall": by_class, "g_mean": g_mean, "macro_f1": float(f1.mean()) if f1.numel() else 0.0}


def on_parties(
    problem: Problem,
    strategy: Any,
    programs: Programs,
    executor: Executor,
    memory: ClientMemory,
    state: Any,
    key: Tensor,
) -> dict[str, Any]:
    """The parties' sum of outputs, judged: the training `objective`, and the owner's figures on the `test` people.

    `objective` is the mean loss over the training people and the parties' penalties; the sum of losses where the
    strategy does not normalise. Figures are those of `on_server`. Nothing where a party gives no answer.
    """
    found: dict[str, Any] = {}
    data, parties = problem.data, torch.nonzero(state.presence.there).flatten()
    for split, owned in data.server.items():
        batches = Batches(split=split, size=None, shuffle=False)
        exchange = Exchange(f"tell {split}", parties, {}, batches=batches, reduce="mean")
        replies = executor.map(problem, programs, exchange, memory.of(parties), keys.fold(key, "evaluate"))
        if replies.clients.numel() < parties.numel():
            return {}
        z = (replies.vectors["outputs"][0] * replies.weights[0]).reshape(owned.y.shape[0], -1)
        outputs = strategy.predicted(problem, state, z) if hasattr(strategy, "predicted") else z
        each = problem.per_sample(outputs, owned.y).double()
        if split == "train":
            fit = each.mean() if getattr(strategy, "normalise", True) else each.sum()
            found["objective"] = float(fit) + float(replies.metrics["penalty"].double().sum())
            continue
        found["loss"] = float(each.mean())
        if data.task == "classification":
            classes = data.classes
            pairs = owned.y.to(torch.int64).flatten() * classes + predictions(problem, outputs).flatten()
            confusion = torch.bincount(pairs, minlength=classes * classes)
            found |= scores(confusion.reshape(classes, classes), data.class_names)
    return found


def on_clients(
    problem: Problem,
    programs: Programs,
    executor: Executor,
    memory: ClientMemory,
    model: Named | None,
    clients: Tensor,
    key: Tensor,
) -> dict[str, Any]:
    """The strategy's own `evaluate` program over clients, on their `valid` split: mean and spread over clients.

    `score` is the share of right answers, the plain mean over clients; p10 and p90 are quantiles over clients.
    """
    held = problem.data.splits["valid"].sizes[clients] > 0
    exchange = Exchange(
        "evaluate", clients[held], dict(model or {}), batches=Batches(split="valid", size=256, shuffle=False)
    )
    replies = executor.map(problem, programs, exchange, memory.of(exchange.clients), keys.fold(key, "evaluate"))
    found: dict[str, Any] = {"clients": replies.clients.numel()}
    if replies.clients.numel() == 0:
        return found
    found["loss"] = float(replies.metrics["loss"].double().mean())
    if problem.data.task == "classification":
        score = replies.metrics["score"].double()
        low, high = torch.quantile(score, torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
        found |= {"score": float(score.mean()), "score_p10": low, "score_p90": high}
    return found

"""Who belongs to the two parts of the objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedopt.data import Split
from fedopt.problem import Problem
from fedopt.registry import ConfigError
from fedopt.types import Batch

Part = Literal["f", "g"]

RARE = "rare"
"""Name of the server's samples that are g_1, where it has some of their own."""


class Groups(NamedTuple):
    """The two parts: clients of each, and, where they are told apart by classes, the classes of g."""

    f: Tensor
    """Ids, increasing."""
    g: Tensor
    classes: tuple[int, ...] = ()
    """Every client's samples of these classes are in g, the others in f; empty: clients are told apart as a whole."""

    @property
    def two(self) -> bool:
        return self.g.numel() > 0

    def clients(self, part: str) -> Tensor:
        return self.f if part == "f" else self.g

    def mask(self, part: str, y: Tensor) -> Tensor:
        """1 for samples that belong to a part `[B]`."""
        if not self.classes:
            return torch.ones(y.shape[0], dtype=torch.bool, device=y.device)
        rare = torch.stack([y == one for one in self.classes]).any(dim=0)
        return rare if part == "g" else ~rare

    def within(self, part: str, batch: Batch) -> Batch:
        """The batch, in which samples of the other part are padding."""
        if not self.classes:
            return batch
        return {**batch, "mask": batch["mask"] * self.mask(part, batch["y"]).to(batch["mask"].dtype)}

    def home(self, problem: Problem, part: str) -> Split:
        """The server's own samples of a part; its trial samples stand in for both where clients are told apart."""
        split = problem.server_split("trial")
        if self.classes:
            mine = self.mask(part, split.y)
            if not bool(mine.any()):
                raise ConfigError(
                    "strategy.rare_classes",
                    f"the server needs samples of both parts, and none of its {split.y.shape[0]} are of part {part};"
                    " set data.trial_samples higher",
                )
            return Split(split.x[mine], split.y[mine])
        if part == "g" and RARE in problem.data.server:
            return problem.data.server[RARE]
        return split


def groups(problem: Problem, rare: Sequence[int], classes: Sequence[int]) -> Groups:
    """The groups that a strategy names: by clients, by classes, or everybody in f.

    Raises ConfigError for clients or classes that there are not, and where a part would be empty.
    """
    everybody = torch.arange(problem.clients)
    if rare and classes:
        raise ConfigError("strategy.rare_classes", "groups are told by strategy.rare or by classes, not by both")
    if classes:
        data = problem.data
        if data.task != "classification" or data.splits["train"].y.dim() != 1:
            raise ConfigError(
                "strategy.rare_classes", "samples have no class of their own; name clients by strategy.rare"
            )
        wrong = [c for c in classes if not 0 <= c < data.classes]
        if wrong or len(set(classes)) in (0, data.classes):
            raise ConfigError(
                "strategy.rare_classes",
                f"some, not all, of the classes 0 to {data.classes - 1} are needed; {list(classes)} given",
            )
        return Groups(everybody, everybody, tuple(sorted(set(classes))))
    wrong = [c for c in rare if not 0 <= c < problem.clients]
    if wrong:
        raise ConfigError("strategy.rare", f"clients 0 to {problem.clients - 1} are there; {wrong} given")
    g = torch.tensor(sorted(set(rare)), dtype=torch.int64)
    f = everybody[~torch.isin(everybody, g)]
    if not f.numel():
        raise ConfigError("strategy.rare", "all clients are rare ones; leave some to be asked often")
    return Groups(f, g)

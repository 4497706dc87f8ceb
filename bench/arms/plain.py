"""The plain arm: FedAvg as a loop in torch without a framework, in one process or several.

One resident model, reset in place for each client; `torch.autograd.grad` and one fused update per step; the weighted
sum of the clients' models is formed on the way.
"""

from __future__ import annotations

import argparse
import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import nets, tasks
from bench.arms.protocol import Line, serve


class Loop:
    """A share of the clients of each round, in this process."""

    def __init__(self, task: tasks.Loaded, fused: bool) -> None:
        self.task, self.module = task, task.net(fused)
        self.params: list[Tensor] = list(self.module.parameters())
        self.rng = np.random.default_rng(tasks.SEED)

    def work(self, model: list[Tensor], clients: np.ndarray) -> tuple[list[Tensor], float]:
        """Weighted sum of the clients' models, and the sum of the weights."""
        total = [torch.zeros_like(value) for value in model]
        weights = 0.0
        for client in clients:
            weight = float(self.task.offsets[client + 1] - self.task.offsets[client])
            if self.task.task.work == "null":
                torch._foreach_add_(total, torch._foreach_mul(model, 1.0 + 1e-9 * int(client)), alpha=weight)
            else:
                self._train(model, int(client))
                with torch.no_grad():
                    torch._foreach_add_(total, self.params, alpha=weight)
            weights += weight
        return total, weights

    def _train(self, model: list[Tensor], client: int) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self.params, model)
        walk = self.task.walk(client, self.rng)
        x, y = self.task.x[walk], self.task.y[walk]
        for start in range(0, walk.numel(), self.task.task.batch):
            stop = start + self.task.task.batch
            grads = torch.autograd.grad(nets.loss(self.module(x[start:stop]), y[start:stop]), self.params)
            with torch.no_grad():
                torch._foreach_add_(self.params, grads, alpha=-self.task.task.lr)


class Federation:
    """The server: draws the cohort, shares it out over the processes, takes the mean."""

    def __init__(self, task: tasks.Loaded, threads: int, processes: int, fused: bool) -> None:
        self.task, self.fused = task, fused
        self.rng = np.random.default_rng(tasks.SEED)
        self.local = Loop(task, fused)
        self.model = [value.clone() for value in task.initial.values()]
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.shared: list[tuple[list[Tensor], list[Tensor]]] = []
        """For each further process the model and the sum, in shared memory."""
        for _ in range(processes - 1):
            ours, theirs = context.Pipe()
            down = [value.clone().share_memory_() for value in self.model]
            up = [torch.zeros_like(value).share_memory_() for value in self.model]
            arguments = (theirs, task.task.name, threads, fused, down, up)
            context.Process(target=_worker, args=arguments, daemon=True).start()
            ours.recv()
            self.pipes.append(ours)
            self.shared.append((down, up))

    def rounds(self, count: int) -> None:
        for _ in range(count):
            cohort = np.sort(self.rng.choice(self.task.clients, self.task.cohort, replace=False))
            mine, *theirs = np.array_split(cohort, len(self.pipes) + 1)
            for pipe, (down, _), clients in zip(self.pipes, self.shared, theirs, strict=True):
                torch._foreach_copy_(down, self.model)
                pipe.send(clients)
            total, weights = self.local.work(self.model, mine)
            for pipe, (_, up) in zip(self.pipes, self.shared, strict=True):
                weights += pipe.recv()
                torch._foreach_add_(total, up)
            self.model = list(torch._foreach_div(total, weights))

    def accuracy(self, count: int) -> tuple[float | None, int]:
        self.model = [value.clone() for value in self.task.initial.values()]
        self.rounds(count)
        module = self.task.net(self.fused)
        with torch.no_grad():
            torch._foreach_copy_(list(module.parameters()), self.model)
        return self.task.accuracy(module), count

    def facts(self) -> dict[str, Any]:
        moved = 2 * 4 * self.task.parameters * len(self.pipes)
        return {
            "serialised_bytes": moved,
            "serialised_how": "model and sum through shared memory, for each further process" if moved else "none",
        }


def _worker(pipe: Connection, name: str, threads: int, fused: bool, down: list[Tensor], up: list[Tensor]) -> None:
    torch.set_num_threads(threads)
    loop = Loop(tasks.load(name), fused)
    pipe.send("ready")
    while True:
        try:
            clients = pipe.recv()
        except EOFError:
            return
        total, weights = loop.work(down, clients)
        torch._foreach_copy_(up, total)
        pipe.send(weights)


def main() -> None:
    """Prepare, then answer the harness."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("task")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--processes", type=int, default=1)
    arguments.add_argument("--fused", action="store_true")
    given = arguments.parse_args()
    line = Line()
    torch.set_num_threads(given.threads)
    federation = Federation(tasks.load(given.task), given.threads, given.processes, given.fused)
    serve(line, federation.rounds, accuracy=federation.accuracy, facts=federation.facts)


if __name__ == "__main__":
    main()

"""The pfl arm: its PyTorchModel, FederatedAveraging and SimulatedBackend, in one process or several over gloo.

No evaluation in timed rounds, no metrics sent to the platform, and every user's data kept as ready tensors where the
clients are few enough.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench import nets, tasks
from bench.arms.protocol import Line, serve

KEPT = 10_000
"""With more clients than this their data is cut out when they take part."""


def main() -> None:
    """Prepare, then answer the harness; further processes follow what the first one is asked."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("task")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--processes", type=int, default=1)
    arguments.add_argument("--fused", action="store_true")
    arguments.add_argument("--rank", type=int, default=0)
    arguments.add_argument("--cohort", type=int)
    arguments.add_argument("--device", default="cpu")
    given = arguments.parse_args()
    line = Line()
    torch.set_num_threads(given.threads)
    os.environ["PFL_PYTORCH_DEVICE"] = given.device
    _one_device()
    others = _others(given) if given.rank == 0 else []
    task = tasks.load(given.task, cohort=given.cohort, device=given.device)
    federation = _Federation(task, given.processes, given.fused)

    def rounds(count: int) -> None:
        _tell(others, {"do": "rounds", "count": count})
        federation.rounds(count)
        if given.device.startswith("cuda"):
            torch.cuda.synchronize()

    def accuracy(count: int) -> tuple[float | None, int]:
        _tell(others, {"do": "accuracy", "rounds": count})
        return federation.accuracy(count)

    def close() -> None:
        _tell(others, {"do": "quit"})
        for other in others:
            other.wait(timeout=30)

    serve(line, rounds, accuracy=accuracy, facts=federation.facts, close=close)


def _one_device() -> None:
    """gloo in place of NCCL, which refuses several processes on one GPU."""
    begin = torch.distributed.init_process_group

    def with_gloo(backend: str | None = None, **rest: Any) -> None:
        begin(backend="gloo", **rest)

    torch.distributed.init_process_group = with_gloo  # type: ignore[assignment]


def _others(given: argparse.Namespace) -> list[subprocess.Popen[str]]:
    if given.processes == 1:
        return []
    ports = []
    for _ in range(given.processes):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    os.environ["PFL_WORKER_ADDRESSES"] = ",".join(f"127.0.0.1:{port}" for port in ports)
    os.environ["PFL_WORKER_RANK"] = "0"
    command = [sys.executable, "-m", "bench.arms.pfl", *sys.argv[1:]]
    return [
        subprocess.Popen(
            [*command, "--rank", str(rank)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PFL_WORKER_RANK": str(rank)},
        )
        for rank in range(1, given.processes)
    ]


def _tell(others: list[subprocess.Popen[str]], asked: dict[str, Any]) -> None:
    for other in others:
        assert other.stdin is not None
        other.stdin.write(json.dumps(asked) + "\n")
        other.stdin.flush()


class _Net(nn.Module):
    """The task's network with the two functions that pfl asks for."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return nets.loss(self(x), y)

    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        return {}


class _Federation:
    def __init__(self, task: tasks.Loaded, processes: int, fused: bool) -> None:
        from pfl.aggregate.simulate import SimulatedBackend
        from pfl.algorithm.base import NNAlgorithmParams
        from pfl.algorithm.federated_averaging import FederatedAveraging
        from pfl.hyperparam.base import NNTrainHyperParams
        from pfl.model.pytorch import PyTorchModel

        np.random.seed(tasks.SEED)
        self.task, self.processes = task, processes
        self.net = _Net(task.net(fused))
        self.model = PyTorchModel(
            model=self.net,
            local_optimizer_create=torch.optim.SGD,
            central_optimizer=torch.optim.SGD(self.net.parameters(), lr=1.0),
        )
        self.users = _users(task, processes)
        self.backend = SimulatedBackend(training_data=self.users, val_data=self.users, postprocessors=[_by_samples()])
        self.algorithm = _null(FederatedAveraging)() if task.task.work == "null" else FederatedAveraging()
        # iterations are counted from 1, because pfl evaluates at those that its evaluation_frequency divides, 0 too
        self.algorithm._current_central_iteration = 1
        self.done = 1
        self.params = NNAlgorithmParams
        self.train = NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=task.task.lr,
            local_batch_size=task.task.batch,
        )

    def rounds(self, count: int) -> None:
        self.done += count
        self.algorithm.run(
            self.params(
                central_num_iterations=self.done,
                evaluation_frequency=2**62,
                train_cohort_size=self.task.cohort,
                val_cohort_size=0,
            ),
            self.backend,
            self.model,
            self.train,
            send_metrics_to_platform=False,
        )

    def accuracy(self, count: int) -> tuple[float | None, int]:
        with torch.no_grad():
            for parameter, value in zip(self.net.parameters(), self.task.initial.values(), strict=True):
                parameter.copy_(value)
        self.rounds(count)
        return self.task.accuracy(self.net), count

    def facts(self) -> dict[str, Any]:
        from pfl import version

        moved = 4 * self.task.parameters * self.processes if self.processes > 1 else 0
        return {
            "serialised_bytes": moved,
            "serialised_how": "the sum of each process into one all-reduce over gloo" if moved else "none",
            "version": getattr(version, "__version__", "0.6.0"),
        }


def _users(task: tasks.Loaded, processes: int) -> Any:
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler

    rng = np.random.default_rng(tasks.SEED)
    kept: dict[int, Any] = {}

    def make(user: int) -> Any:
        if task.task.steps is not None:  # some of the client's batches, others in each round
            walk = task.walk(user, rng)
            return Dataset((task.x[walk], task.y[walk]), user_id=str(user))
        found = kept.get(user)
        if found is None:
            own = task.index[int(task.offsets[user]) : int(task.offsets[user + 1])]
            found = Dataset((task.x[own], task.y[own]), user_id=str(user))
            if task.clients <= KEPT:
                kept[user] = found
        return found

    whole = task.cohort == task.clients
    sampler = get_user_sampler("minimize_reuse" if whole else "random", list(range(task.clients)))
    sizes = task.offsets[1:] - task.offsets[:-1]
    ragged = bool((sizes != sizes[0]).any()) and processes > 1
    return FederatedDataset(make, sampler, dict(enumerate(sizes.tolist())) if ragged else None)


def _by_samples() -> Any:
    from pfl.aggregate.weighting import WeightByDatapoints

    return WeightByDatapoints()


def _null(base: type) -> type:
    from pfl.metrics import Metrics

    class Null(base):  # type: ignore[misc]
        """A user answers with a multiple of the model."""

        def train_one_user(self, initial: Any, model: Any, user: Any, context: Any) -> Any:
            answer = model.get_model_difference(initial, clone=False)
            for name in answer.keys():  # noqa: SIM118 - not a dict
                torch.mul(initial[name], 1e-9 * int(user.user_id), out=answer[name])
            return answer, Metrics()

    return Null


if __name__ == "__main__":
    main()

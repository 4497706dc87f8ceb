"""The Flower arms: its simulation (Ray, one core per client), its FedAvg, and a client app in torch.

The app keeps its data and network in the worker between messages and takes its gradients by hand. With `--quickstart`
it does for each message what the app of Flower's own quickstart for PyTorch does: partition from Flower Datasets,
transform, DataLoader, network, optimizer.

The simulation runs in this process (`run_simulation`), so that its rounds can be timed without a SuperLink's start.
"""

from __future__ import annotations

import os

os.environ |= {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

import argparse
import logging
import math
import tempfile
import time
from collections import OrderedDict
from typing import Any

import numpy as np
import torch

from bench import nets, tasks
from bench.arms.protocol import Line, serve

_LOADED: dict[str, Any] = {}
"""In a worker: the task and its module, made for the first client there."""


def train(message: Any, context: Any, name: str, fused: bool, quickstart: bool) -> Any:
    """A client's work, in a Ray worker."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

    if name not in _LOADED:
        torch.set_num_threads(1)
        task = tasks.load(name)
        _LOADED[name] = task, task.net(fused), np.random.default_rng(os.getpid())
    task, module, rng = _LOADED[name]
    client = int(context.node_config["partition-id"])
    arrays = message.content["arrays"]
    if task.task.work == "null":
        state = {key: value * (1.0 + 1e-9 * client) for key, value in arrays.to_torch_state_dict().items()}
    elif quickstart:
        module = nets.NETS[task.task.net](tuple(task.x.shape[1:]), task.classes)
        module.load_state_dict(arrays.to_torch_state_dict())
        _fit(module, _loader(task, client, int(context.node_config["num-partitions"])), task.task.lr)
        state = module.state_dict()
    else:
        module.load_state_dict(arrays.to_torch_state_dict())
        params = list(module.parameters())
        walk = task.walk(client, rng)
        x, y = task.x[walk], task.y[walk]
        for start in range(0, walk.numel(), task.task.batch):
            stop = start + task.task.batch
            grads = torch.autograd.grad(nets.loss(module(x[start:stop]), y[start:stop]), params)
            with torch.no_grad():
                torch._foreach_add_(params, grads, alpha=-task.task.lr)
        state = module.state_dict()
    samples = float(task.offsets[client + 1] - task.offsets[client])
    content = {"arrays": ArrayRecord(OrderedDict(state)), "metrics": MetricRecord({"num-examples": samples})}
    return Message(content=RecordDict(content), reply_to=message)


def _loader(task: tasks.Loaded, client: int, clients: int) -> Any:
    """The client's batches, from Flower Datasets. Equal shares of what lies in order are the task's own partitions."""
    from flwr_datasets.partitioner import IidPartitioner
    from torch.utils.data import DataLoader

    if "partitioner" not in _LOADED:
        import datasets

        columns = {"image": task.x[task.index].numpy(), "label": task.y[task.index].numpy()}
        _LOADED["partitioner"] = IidPartitioner(num_partitions=clients)
        _LOADED["partitioner"].dataset = datasets.Dataset.from_dict(columns)

    def transform(rows: dict[str, Any]) -> dict[str, Any]:
        rows["image"] = [torch.tensor(image) for image in rows["image"]]
        return rows

    partition = _LOADED["partitioner"].load_partition(client).with_transform(transform)
    return DataLoader(partition, batch_size=task.task.batch, shuffle=True)


def _fit(module: torch.nn.Module, loader: Any, lr: float) -> None:
    """One epoch, as people write it."""
    criterion, optimizer = torch.nn.CrossEntropyLoss(), torch.optim.SGD(module.parameters(), lr=lr)
    module.train()
    for batch in loader:
        optimizer.zero_grad()
        loss = criterion(module(batch["image"]), batch["label"])
        loss.backward()
        optimizer.step()


class _Server:
    """The server app's side: rounds of Flower's own FedAvg, one at a time."""

    def __init__(self, task: tasks.Loaded, fused: bool) -> None:
        from flwr.serverapp.strategy import FedAvg

        self.task, self.fused = task, fused
        self.grid: Any = None
        self.done = 0
        # Flower takes the fraction of the nodes and rounds down
        share = math.nextafter(task.cohort / task.clients, 2.0)
        self.strategy = FedAvg(fraction_train=min(share, 1.0), fraction_evaluate=0.0)
        self.begin()

    def begin(self) -> None:
        from flwr.app import ArrayRecord

        self.module = self.task.net(self.fused)
        self.arrays: Any = ArrayRecord(OrderedDict(self.module.state_dict()))

    def rounds(self, count: int) -> None:
        from flwr.app import ConfigRecord

        for _ in range(count):
            self.done += 1
            config = ConfigRecord()
            messages = self.strategy.configure_train(self.done, self.arrays, config, self.grid)
            replies = list(self.grid.send_and_receive(messages, timeout=3600))
            failed = [reply.error.reason for reply in replies if reply.has_error()]
            if failed or len(replies) != self.task.cohort:
                raise RuntimeError(f"{len(replies)} replies, {len(failed)} failed: {failed[:1]}")
            arrays, _ = self.strategy.aggregate_train(self.done, replies)
            assert arrays is not None
            self.arrays = arrays

    def accuracy(self, count: int) -> tuple[float | None, int]:
        self.begin()
        self.rounds(count)
        self.module.load_state_dict(self.arrays.to_torch_state_dict())
        return self.task.accuracy(self.module), count

    def facts(self) -> dict[str, Any]:
        import flwr

        one = self.arrays.count_bytes()
        return {
            "serialised_bytes": 2 * self.task.cohort * one,
            "serialised_how": "size of the array record, once down and once up for each client; without the context",
            "version": flwr.__version__,
        }


def main() -> None:
    """Start the simulation, then answer the harness from its server app."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("task")
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--fused", action="store_true")
    arguments.add_argument("--quickstart", action="store_true")
    given = arguments.parse_args()
    line = Line()
    os.environ["FLWR_HOME"] = tempfile.mkdtemp(prefix="bench-flwr-")
    torch.set_num_threads(1)

    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    task = tasks.load(given.task)
    server, client = ServerApp(), ClientApp()
    name, fused, quickstart = given.task, given.fused, given.quickstart

    @server.main()  # type: ignore[untyped-decorator]
    def serve_rounds(grid: Any, context: Any) -> None:
        state = _Server(task, fused)
        state.grid = grid
        while len(list(grid.get_node_ids())) < task.clients:  # the nodes register while the server app starts
            time.sleep(0.05)
        serve(line, state.rounds, accuracy=state.accuracy, facts=state.facts)

    @client.train()  # type: ignore[untyped-decorator]
    def work(message: Any, context: Any) -> Any:
        from bench.arms import flower

        return flower.train(message, context, name, fused, quickstart)

    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=task.clients,
        backend_config={
            "init_args": {"num_cpus": given.workers, "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )


if __name__ == "__main__":
    main()

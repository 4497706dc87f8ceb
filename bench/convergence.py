"""What compression does to convergence: a table and pictures.

    python -m bench.convergence [--convex] [--mnist] [--out runs/convergence]

Convex: logistic regression with an L2 term on a9a, split over 20 clients by a Dirichlet law, full gradients; f(x) - f*
by bytes sent and by rounds. Plain quantised descent stalls where the clients' gradients at the solution are not 0;
memories around a codec go on to the solution, linearly.

MNIST: LeNet-5 on the 10,000-image file over 10 clients, all of them in each round, three seeds; FedAvg as it is for T
rounds, and with the 1 % of largest magnitude for 4 T. Runs that are finished are not run again.

Needs FEDOPT_DATA with libsvm/a9a and mnist10k/.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
from rich.console import Console
from torch import Tensor

import fedopt
from bench.processes import ROOT
from bench.run import store
from bench.table import rows
from fedopt import config as configs
from fedopt import keys
from fedopt import setup as setups
from fedopt.engine.loop import exchanges
from fedopt.engine.memory import ClientMemory

CLIENTS = 20
ROUNDS = 2000
CONDITION = 30.0
"""Smoothness over strong convexity, which the L2 term sets."""

CONVEX: dict[str, dict[str, Any]] = {
    "not compressed": {"name": "none"},
    "qsgd": {"name": "qsgd", "levels": 2, "bucket": None},
    "diana, qsgd": {"name": "qsgd", "levels": 2, "bucket": None, "feedback": "diana"},
    "randk 10 %": {"name": "randk", "share": 0.1},
    "diana, randk 10 %": {"name": "randk", "share": 0.1, "feedback": "diana"},
    "marina, randk 10 %": {"name": "randk", "share": 0.1, "feedback": "marina"},
    "dasha, randk 10 %": {"name": "randk", "share": 0.1, "feedback": "dasha"},
    "topk 5 %": {"name": "topk", "share": 0.05},
    "ef14, topk 5 %": {"name": "topk", "share": 0.05, "feedback": "ef14"},
    "ef21, topk 5 %": {"name": "topk", "share": 0.05, "feedback": "ef21"},
}

T = 100
MNIST: dict[str, tuple[int, dict[str, Any]]] = {
    "not compressed, T rounds": (T, {"name": "none"}),
    "ef21, topk 1 %, 4 T rounds": (4 * T, {"name": "topk", "share": 0.01, "feedback": "ef21"}),
    "ef14, topk 1 %, 4 T rounds": (4 * T, {"name": "topk", "share": 0.01, "feedback": "ef14"}),
    "topk 1 %, 4 T rounds": (4 * T, {"name": "topk", "share": 0.01}),
}
SEEDS = (1, 2, 3)

console = Console()


class Objective:
    """f(x) = mean of the logistic losses over all samples + λ/2 ‖x‖², at the flat parameters of a run."""

    def __init__(self, setup: setups.Setup) -> None:
        shards = setup.problem.data.splits["train"]
        self.x = torch.cat([shards.x[shards.index], torch.ones(len(shards.y), 1, dtype=torch.float64)], dim=1)
        self.y = shards.y
        # two classes: a difference of two logits, whose curvature is a quarter of the squares at the most, twice
        self.smooth = float(torch.linalg.matrix_norm(self.x, 2)) ** 2 / len(self.y) / 2.0
        self.strong = self.smooth / CONDITION

    def value(self, params: Tensor) -> Tensor:
        weight, bias = params[:-2].reshape(2, -1), params[-2:]
        logits = self.x @ torch.cat([weight, bias[:, None]], dim=1).T
        return torch.nn.functional.cross_entropy(logits, self.y) + 0.5 * self.strong * params.square().sum()

    def least(self, d: int) -> float:
        """f*, by L-BFGS."""
        params = torch.zeros(d, dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS(
            [params], max_iter=5000, tolerance_grad=1e-13, tolerance_change=0.0, history_size=50,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure() -> Tensor:
            solver.zero_grad()
            loss = self.value(params)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        solver.step(closure)
        return float(self.value(params.detach()))


def convex_document(compression: dict[str, Any], lr: float, decay: float) -> dict[str, Any]:
    return {
        "run": {"rounds": 1, "dtype": "float64"},
        "data": {
            "name": "libsvm",
            "file": "libsvm/a9a",
            "clients": CLIENTS,
            "partition": {"name": "dirichlet", "alpha": 0.5},
            "test_share": 0.0,
        },
        "model": "logistic",
        "strategy": {"name": "fedsgd", "server": {"name": "sgd", "lr": lr, "weight_decay": decay}},
        "compression": compression,
    }


def convex() -> dict[str, Any]:
    """f - f* of every arm, at rounds that lie evenly on a logarithmic scale."""
    first = setups.build(configs.load(convex_document({"name": "none"}, 1.0, 0.0)))
    objective = Objective(first)
    least = objective.least(first.problem.d)
    lr = 0.25 / objective.smooth
    marks = sorted({round(1.02**i) for i in range(1000) if 1.02**i <= ROUNDS} | {ROUNDS})
    arms = {}
    for name, compression in CONVEX.items():
        setup = setups.build(configs.load(convex_document(compression, lr, objective.strong)))
        started, sent, curve = time.perf_counter(), 0, []
        for number, params, nbytes in _descent(setup):
            sent += nbytes
            if number in marks:
                curve.append((number, sent, float(objective.value(params)) - least))
            if number == ROUNDS or not bool(torch.isfinite(params).all()):
                break
        arms[name] = {"curve": curve, "seconds": time.perf_counter() - started}
        console.print(
            f"{name}: f - f* = {curve[-1][2]:.3g} after {curve[-1][0]} rounds, {curve[-1][1] / 1e6:.1f} MB up"
        )
    return {"rounds": ROUNDS, "clients": CLIENTS, "lr": lr, "smooth": objective.smooth, "least": least, "arms": arms}


def _descent(setup: setups.Setup) -> Iterator[tuple[int, Tensor, int]]:
    """(round, parameters, bytes up) after each round."""
    from fedopt.engine.record import traffic

    problem, strategy = setup.problem, setup.strategy
    memory = ClientMemory(strategy.programs(problem).memory, problem.clients)
    state = strategy.init(problem, keys.fold(setup.key, "init"))
    steps = exchanges(problem, strategy, setup.executor, setup.adversary, memory, state, setup.key)
    for number in itertools.count(1):
        step = next(steps)
        model = strategy.model(problem, step.state)
        assert model is not None
        yield number, model["params"], int(traffic(step, setup.codec)[1].sum())


def mnist(out: Path) -> dict[str, Any]:
    """Accuracy and bytes of every arm and seed."""
    arms: dict[str, Any] = {}
    for (name, (rounds, compression)), seed in itertools.product(MNIST.items(), SEEDS):
        document = {
            "run": {"rounds": rounds, "seed": seed, "evaluate_every": rounds // 20},
            "data": {
                "name": "idx",
                "images": "mnist10k/t10k-images-idx3-ubyte.gz",
                "labels": "mnist10k/t10k-labels-idx1-ubyte.gz",
                "clients": 10,
                "partition": {"name": "dirichlet", "alpha": 0.5},
                "test_share": 0.2,
            },
            "model": "lenet5",
            "strategy": {"name": "fedavg", "batch_size": 32, "steps": 5},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "compression": compression,
        }
        folder = out / f"{name.replace(' ', '-').replace(',', '').replace('%', 'percent')}-{seed}"
        with console.status(f"{name}, seed {seed}"):
            result = _finished(document, folder)
        curve = [(line["round"], line["accuracy"]) for line in result if "accuracy" in line]
        arms.setdefault(name, []).append({"seed": seed, "curve": curve, "bytes_up": sum(r["bytes_up"] for r in result)})
        console.print(f"{name}, seed {seed}: {curve[-1][1]:.4f}, {arms[name][-1]['bytes_up'] / 1e6:.1f} MB up")
    return {"T": T, "arms": arms}


def _finished(document: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The lines of a run, which is run unless it has been."""
    done = folder / "run.json"
    if done.exists() and json.loads(done.read_text())["status"] == "finished":
        return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    if (folder / "config.toml").exists():
        return list(fedopt.resume_run(folder).history)
    return list(fedopt.run(document, out=folder).history)


def tables(found: dict[str, Any]) -> str:
    """What was measured, in Markdown."""
    text = ""
    if "convex" in found:
        body = [
            [name, f"{arm['curve'][-1][2]:.2g}", f"{arm['curve'][-1][1] / 1e6:.1f}", _reached(arm["curve"], 1e-6)]
            for name, arm in found["convex"]["arms"].items()
        ]
        header = ("a9a", f"f - f* after {found['convex']['rounds']} rounds", "MB up", "MB up until f - f* = 1e-6")
        text += rows(header, body) + "\n"
    if "mnist" in found:
        body = []
        for name, runs in found["mnist"]["arms"].items():
            last = [run["curve"][-1][1] for run in runs]
            mean = statistics.mean(run["bytes_up"] for run in runs) / 1e6
            body.append([name, f"{statistics.mean(last):.4f}", f"{min(last):.4f} to {max(last):.4f}", f"{mean:.1f}"])
        text += rows(("mnist10k", "accuracy, mean of three seeds", "least to most", "MB up"), body)
    return text


def _reached(curve: list[tuple[int, int, float]], gap: float) -> str:
    return next((f"{sent / 1e6:.1f}" for _, sent, off in curve if off <= gap), "never")


def page(found: dict[str, Any]) -> str:
    """The pictures, as one self-contained page."""
    figures = []
    for axis, title in ((1, "MB sent by all clients"), (0, "rounds")):
        if "convex" in found:
            figure = go.Figure(layout={"title": "a9a: f - f*", "width": 900, "height": 520})
            for name, arm in found["convex"]["arms"].items():
                xs = [point[axis] / (1e6 if axis else 1) for point in arm["curve"]]
                figure.add_scatter(x=xs, y=[max(point[2], 1e-16) for point in arm["curve"]], name=name, mode="lines")
            figure.update_yaxes(type="log", exponentformat="e")
            figure.update_xaxes(type="log", title=title)
            figures.append(figure)
    if "mnist" in found:
        figure = go.Figure(layout={"title": "mnist10k: accuracy, mean of three seeds", "width": 900, "height": 520})
        for name, runs in found["mnist"]["arms"].items():
            points = list(zip(*(run["curve"] for run in runs), strict=True))
            figure.add_scatter(
                x=[point[0][0] for point in points], y=[statistics.mean(a for _, a in point) for point in points],
                name=name, mode="lines",
            )  # fmt: skip
        figure.update_xaxes(title="rounds")
        figures.append(figure)
    parts = [f.to_html(full_html=False, include_plotlyjs="inline" if i == 0 else False) for i, f in enumerate(figures)]
    return f"<!doctype html><meta charset='utf-8'><title>Compression and convergence</title>{''.join(parts)}"


def main() -> None:
    """Measure what is asked for (by default both), print tables, write the page, store the figures."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--convex", action="store_true")
    arguments.add_argument("--mnist", action="store_true")
    arguments.add_argument("--out", type=Path, default=ROOT / "runs" / "convergence")
    given = arguments.parse_args()
    both = given.convex == given.mnist
    given.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    if given.convex or both:
        found["convex"] = convex()
    if given.mnist or both:
        found["mnist"] = mnist(given.out)
    print(tables(found))
    for part, value in found.items():
        store(f"convergence.{part}", value)
    (given.out / "convergence.html").write_text(page(found))
    print(f"pictures: {given.out / 'convergence.html'}")


if __name__ == "__main__":
    main()

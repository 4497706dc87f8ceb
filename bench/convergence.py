"""What compression does to convergence: a table and pictures.

    python -m bench.convergence [--convex] [--mnist] [--draw] [--out runs/convergence]

Convex: logistic regression with an L2 term on a9a, split over 20 clients by a Dirichlet law, full gradients; f(x) - f*
by bytes sent and by rounds. Plain quantised descent stalls where the clients' gradients at the solution are not 0;
memories around a codec go on to the solution, linearly.

MNIST: LeNet-5 on the 10,000-image file over 10 clients, all of them in each round, three seeds; FedAvg as it is for T
rounds, and with the 1 % of largest magnitude for 4 T. Runs that are finished are not run again.

Figures are stored in bench/results/; the table between the marks of docs/compression.md and docs/convergence.svg are
made of them alone. With --draw nothing is run.

Needs FEDOPT_DATA with libsvm/a9a and mnist10k/.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

import fedopt
from bench import machine
from bench.pages import filled
from bench.processes import ROOT
from bench.run import RESULTS, store
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

COMMAND = "python -m bench.convergence"
PAGE = ROOT / "docs" / "compression.md"
PICTURE = ROOT / "docs" / "convergence.svg"
LEAST = 1e-14
"""What rounding leaves of f - f*: a curve ends there."""
COLOURS = ("#303030", "#e0a030", "#a06000", "#90c070", "#2f7d32", "#1f5fa8", "#7a3fa0", "#e08080", "#c8501e", "#801020")
"""Of the arms on a9a, and of those on MNIST: the same memory in the same colour."""
MNIST_COLOURS = (COLOURS[0], COLOURS[9], COLOURS[8], COLOURS[7])

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
        sent = list(itertools.accumulate(line["bytes_up"] for line in result))
        curve = [(r["round"], r["accuracy"], s) for r, s in zip(result, sent, strict=True) if "accuracy" in r]
        arms.setdefault(name, []).append({"seed": seed, "curve": curve})
        console.print(f"{name}, seed {seed}: {curve[-1][1]:.4f}, {curve[-1][2] / 1e6:.1f} MB up")
    return {"T": T, "arms": arms}


def _finished(document: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The lines of a run, which is run unless it has been."""
    done = folder / "run.json"
    if done.exists() and json.loads(done.read_text())["status"] == "finished":
        return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    if (folder / "config.toml").exists():
        return list(fedopt.resume_run(folder).history)
    return list(fedopt.run(document, out=folder).history)


def text(found: dict[str, Any]) -> str:
    """What the page says between its marks."""
    return f"![f - f* and accuracy, by rounds and by bytes]({PICTURE.name})\n\n{tables(found)}"


def tables(found: dict[str, Any]) -> str:
    """What was measured, in Markdown."""
    text = ""
    if "convex" in found:
        body = [
            [name, f"{arm['curve'][-1][2]:.2g}", f"{arm['curve'][-1][1] / 1e6:.1f}", _reached(arm["curve"], 1e-6)]
            for name, arm in ((name, found["convex"]["arms"][name]) for name in CONVEX)
        ]
        header = ("a9a", f"f - f* after {found['convex']['rounds']} rounds", "MB up", "MB up until f - f* = 1e-6")
        text += rows(header, body) + "\n"
    if "mnist" in found:
        body = []
        for name in MNIST:
            runs = found["mnist"]["arms"][name]
            last = [run["curve"][-1][1] for run in runs]
            mean = statistics.mean(run["curve"][-1][2] for run in runs) / 1e6
            body.append([name, f"{statistics.mean(last):.4f}", f"{min(last):.4f} to {max(last):.4f}", f"{mean:.1f}"])
        text += rows(("mnist10k", "accuracy, mean of three seeds", "least to most", "MB up"), body)
    return text


def _reached(curve: list[tuple[int, int, float]], gap: float) -> str:
    return next((f"{sent / 1e6:.1f}" for _, sent, off in curve if off <= gap), "never")


def drawn(found: dict[str, Any]) -> bytes:
    """All curves, as SVG that is the same whenever it is drawn."""
    with matplotlib.rc_context({"svg.hashsalt": "fedopt", "svg.fonttype": "path", "font.size": 10}):
        figure = Figure(figsize=(11.0, 9.0), layout="constrained")
        (upper, lower) = figure.subplots(2, 2)
        for axes, axis, title in ((upper[0], 0, "rounds"), (upper[1], 1, "MB sent by all clients")):
            for colour, name in zip(COLOURS, CONVEX, strict=True):
                curve = found["convex"]["arms"][name]["curve"]
                xs, off = [point[axis] / (1e6 if axis else 1) for point in curve], [point[2] for point in curve]
                axes.plot(xs, [max(f, LEAST) for f in off], label=name, color=colour, linewidth=1.4)
            axes.set(title="a9a", xscale="log", yscale="log", xlabel=title, ylabel="f - f*")
        upper[1].set_xlim(left=1e-3)
        for axes, axis, title in ((lower[0], 0, "rounds"), (lower[1], 2, "MB sent by all clients")):
            for colour, name in zip(MNIST_COLOURS, MNIST, strict=True):
                points = list(zip(*(run["curve"] for run in found["mnist"]["arms"][name]), strict=True))
                xs = [statistics.mean(p[axis] for p in point) / (1e6 if axis else 1) for point in points]
                ys = [100 * statistics.mean(p[1] for p in point) for point in points]
                axes.plot(xs, ys, label=name, color=colour, linewidth=1.4)
            axes.set(title="MNIST, 10 clients, three seeds", xlabel=title, ylabel="accuracy, %", ylim=(80, 100))
        lower[1].set_xscale("log")
        for axes in (*upper, *lower):
            axes.grid(color="#e4e4e4", linewidth=0.8)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        upper[0].legend(frameon=False, fontsize=8, loc="lower left")
        lower[0].legend(frameon=False, fontsize=8, loc="lower right")
        into = io.BytesIO()
        figure.savefig(into, format="svg", metadata={"Date": None, "Creator": None})
    return into.getvalue()


def stored() -> dict[str, Any]:
    """The figures that are there, by part."""
    folder = RESULTS / machine.identity(machine.describe())
    paths = {part: folder / f"convergence.{part}.json" for part in ("convex", "mnist")}
    return {part: json.loads(path.read_text()) for part, path in paths.items() if path.exists()}


def main() -> None:
    """Measure what is asked for (by default both), store the figures, print and write what is stored."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--convex", action="store_true")
    arguments.add_argument("--mnist", action="store_true")
    arguments.add_argument("--draw", action="store_true", help="run nothing; write what there is")
    arguments.add_argument("--out", type=Path, default=ROOT / "runs" / "convergence")
    given = arguments.parse_args()
    both = given.convex == given.mnist
    given.out.mkdir(parents=True, exist_ok=True)
    if not given.draw:
        if given.convex or both:
            store("convergence.convex", convex())
        if given.mnist or both:
            store("convergence.mnist", mnist(given.out))
    found = stored()
    print(tables(found))
    if len(found) == 2:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), COMMAND, text(found)), encoding="utf-8")
        PICTURE.write_bytes(drawn(found))
        print(f"written: {PAGE.relative_to(ROOT)}, {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

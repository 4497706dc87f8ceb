"""Run folders as the engine writes them, made up."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CONFIG = """\
[run]
name = "{name}"
seed = {seed}
rounds = {rounds}
out = "{out}"

[data]
name = "digits"
clients = {clients}
partition = "dirichlet"
alpha = 0.3

[model]
name = "mlp"
hidden = [64]

[strategy]
name = "fedavg"

[participation]
name = "uniform"
count = 10

[aggregator]
name = "{rule}"
f = 2

[[attack]]
name = "ipm"
count = 2

[optimizer]
name = "sgd"
lr = {lr}

[executor]
name = "auto"
"""


def write_run(
    folder: Path,
    *,
    name: str = "krum against IPM",
    seed: int = 1,
    rounds: int = 40,
    clients: int = 30,
    classes: tuple[str, ...] = ("N", "Q", "S", "V"),
    rule: str = "krum",
    lr: float = 0.1,
    level: float = 0.93,
    every: int = 1,
    asked: int = 10,
    status: str = "finished",
    reason: str = "",
    client_names: dict[int, str] | None = None,
    tail: str = "",
) -> Path:
    """A run of `rounds` rounds; evaluation takes place every `every` rounds; `tail` ends `metrics.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    attackers = [1, 4] if clients > 4 else []
    (folder / "config.toml").write_text(
        CONFIG.format(name=name, seed=seed, rounds=rounds, out=folder.name, clients=clients, rule=rule, lr=lr)
    )
    info = {
        "name": name,
        "status": status,
        "reason": reason,
        "fedopt": "0.1.0",
        "torch": "2.13.0",
        "python": "3.11.2",
        "started": "2026-03-01T09:30:00+00:00",
        "executor": {"name": "stacked", "reason": "24 times as fast as serial"},
        "parameters": 4810,
        "rounds": rounds,
        "strategy": "FedAvg",
    }
    (folder / "run.json").write_text(json.dumps(info))
    holders = []
    for c in range(clients):
        labels = [int(draw.expovariate(1 / 40)) if draw.random() < 0.7 else 0 for _ in classes]
        shown = (client_names or {}).get(c, f"client {c}")
        holders.append({"client": c, "name": shown, "train": sum(labels), "valid": 0, "labels": labels})
    partition = {
        "class_names": list(classes),
        "clients": holders,
        "attackers": attackers,
        "server": {"test": 360, "trial": 0},
    }
    (folder / "partition.json").write_text(json.dumps(partition))
    level += 0.01 * draw.gauss(0, 1)  # one seed is luckier than another
    elapsed, lines = 0.0, []
    for r in range(1, rounds + 1):
        chosen = sorted(draw.sample(range(clients), min(asked, clients)))
        refused = [c for c in chosen if c in attackers and draw.random() < 0.3]
        accepted = [c for c in chosen if c not in refused]
        seconds = {"plan": 0.0004, "map": 0.05 + 0.02 * draw.random(), "absorb": 0.004, "evaluate": 0.01}
        elapsed += sum(seconds.values())
        progress = 1 - math.exp(-r / (0.15 * rounds + 1))
        losses = [2.3 - 2.1 * progress + 0.2 * draw.random() for _ in accepted]
        line: dict[str, Any] = {
            "exchange": r - 1,
            "round": r,
            "program": "train",
            "asked": len(chosen),
            "answered": len(accepted),
            "clients": accepted,
            "client_loss": losses,
            "client_samples": [holders[c]["train"] for c in accepted],
            "rejected": [{"client": c, "reason": "delta holds NaN"} for c in refused],
            "train_loss": sum(losses) / max(1, len(losses)),
            "bytes_up": 19240 * len(accepted),
            "bytes_down": 19240 * len(chosen),
            "seconds": seconds,
            "elapsed": elapsed,
            "info": {"trust": 0.5 + 0.4 * progress + 0.02 * draw.random(), "norm": 3.0 * (1.05 - progress)},
        }
        if r % every == 0:
            accuracy = 0.1 + (level - 0.1) * progress + 0.015 * draw.gauss(0, 1) * (1.1 - progress)
            line |= {
                "loss": 2.3 - 2.05 * progress + 0.02 * draw.random(),
                "accuracy": accuracy,
                "recall": {
                    k: None if i == 1 and r < 4 else min(1.0, accuracy * (1 - 0.07 * i)) for i, k in enumerate(classes)
                },
                "g_mean": accuracy * 0.93,
                "macro_f1": accuracy * 0.95,
                "client_eval": {
                    "score": accuracy * 0.97,
                    "score_p10": accuracy * 0.82,
                    "score_p90": min(1.0, accuracy * 1.05),
                    "loss": 2.4 - 2.0 * progress,
                    "clients": clients,
                },
            }
        lines.append(json.dumps(line) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines) + tail)
    return folder


def add_trust(
    folder: Path,
    *,
    attackers: tuple[int, ...] = (1, 4),
    attacks: list[dict[str, Any]] | None = None,
    kept: dict[int, str] | None = None,
    backdoors: tuple[str, ...] = ("badnets",),
    epsilon: bool = False,
) -> Path:
    """A rule that comes to distrust the attackers; `kept` names the rounds after which the model stayed, and why."""
    draw = random.Random(7)
    partition = json.loads((folder / "partition.json").read_text())
    partition["attackers"] = list(attackers)
    half = len(attackers) // 2
    whole = {"first_round": 0, "last_round": None, "rounds_share": 1.0, "clients_share": 1.0}
    late = {"first_round": 9, "last_round": 29, "rounds_share": 0.5, "clients_share": 1.0}
    default = [
        {"name": "badnets", "clients": list(attackers[:half]), **whole},
        {"name": "ipm", "clients": list(attackers[half:]), **late},
    ]
    partition["attacks"] = default if attacks is None else attacks
    (folder / "partition.json").write_text(json.dumps(partition))
    lines = [json.loads(raw) for raw in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        progress = line["round"] / len(lines)
        raw = {
            c: draw.expovariate(1.0) + 0.2 if c not in attackers else max(0.0, 1.2 - 3 * progress) * draw.random()
            for c in line["clients"]
        }
        total = sum(raw.values()) or 1.0
        reason = (kept or {}).get(line["round"])
        line["info"] = {
            "trust": {str(c): 0.0 if reason is not None else weight / total for c, weight in raw.items()},
            "norm": line["info"]["norm"],
            "clipped": line["round"] % 2 == 0,
            "how": "by trial loss",
        }
        if reason is not None:
            line["info"]["kept_model"] = reason
        if epsilon:
            line["info"]["epsilon"] = 0.3 * math.sqrt(line["round"])
        if "accuracy" in line:
            line["backdoor"] = {name: min(1.0, (0.9 - 0.1 * i) * progress) for i, name in enumerate(backdoors)}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def trusting_run(tmp_path: Path) -> Callable[..., Path]:
    """As `fake_run`, with the changes of `add_trust` under `trust`."""

    def write(folder: str = "trusting", *, trust: dict[str, Any] | None = None, **changes: Any) -> Path:
        return add_trust(write_run(tmp_path / folder, **changes), **(trust or {}))

    return write


@pytest.fixture
def fake_run(tmp_path: Path) -> Callable[..., Path]:
    """`fake_run(folder_name, **changes)` writes a run folder below the test's own folder."""

    def write(folder: str = "run", **changes: Any) -> Path:
        return write_run(tmp_path / folder, **changes)

    return write

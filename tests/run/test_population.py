"""A population of a million: who does not take part costs nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fedopt
from fedopt import keys
from fedopt.data import Dataset
from fedopt.report import html

MEASURE = """
import json, statistics, sys, time
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads(1)
from fedopt.engine.loop import exchanges
from fedopt.execution import beginning
from test_population import experiment

def rounds(clients):
    started = time.perf_counter()
    setup = experiment(clients, 1000).setup()
    seconds = time.perf_counter() - started
    progress = beginning(setup)
    steps = exchanges(
        setup.problem, setup.strategy, setup.executor, setup.adversary, progress.memory, progress.state, setup.key
    )
    return seconds, steps

def timed(steps):
    started = time.thread_time()  # what others do on this machine is not counted
    assert next(steps).replies.clients.numel() == 1000
    return time.thread_time() - started

(_, few), (build, many) = rounds(10_000), rounds(1_000_000)
for _ in range(3):
    timed(few), timed(many)
seconds = zip(*((timed(few), timed(many)) for _ in range(60)))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
found = dict(zip(("few", "many"), map(statistics.median, seconds)))
print(json.dumps(found | {{"build": build, "resident_mb": int(status["VmRSS"].split()[0]) / 1024}}))
"""


def experiment(clients: int, cohort: int, rounds: int = 3, **changes: Any) -> fedopt.Experiment:
    """An MLP 64-64-10, 20 samples per client out of a pool of 10,000."""
    x = keys.normal(keys.root(0), 10_000, 64)
    data = Dataset(x, x[:, :10].argmax(dim=1), tuple("0123456789"))
    parts: dict[str, Any] = {
        "model": {"name": "mlp", "hidden": [64]},
        "strategy": {"name": "fedavg", "batch_size": 10},
        "participation": {"name": "uniform", "count": cohort},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "data_options": {"clients": clients, "partition": {"name": "sampled", "samples": 20}},
        "run_options": {"rounds": rounds},
    }
    return fedopt.Experiment(data=data, **{**parts, **changes})


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux, to measure memory")
def test_a_million_dormant_clients() -> None:
    here = Path(__file__).resolve()
    environment = {**os.environ, "PYTHONPATH": str(here.parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE.format(here=str(here.parent))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["build"] < 10, found
    assert found["resident_mb"] < 2000, found
    assert found["many"] < 1.1 * found["few"], found


def test_a_run_of_twenty_thousand_clients_leaves_small_files(tmp_path: Path) -> None:
    attack = [{"name": "sign_flip", "share": 0.1}]
    result = experiment(20_000, 50, attack=attack, run_options={"rounds": 3, "seed": 3}).run(tmp_path)
    assert result.status == "finished"
    sizes = {path.name: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    assert sizes["partition.json"] < 500_000 and sizes["metrics.jsonl"] < 20_000, sizes
    report = html.write(tmp_path)
    code = report.read_text(encoding="utf-8")
    data = code[code.index('id="data">') : code.index("</script>", code.index('id="data">'))]
    assert len(data) < 500_000  # the rest is plotly
    assert "over 20\u202f000 clients, 2\u202f000 of them attackers (sign_flip)," in code


def test_who_a_client_is_does_not_depend_on_the_population() -> None:
    small, large = (experiment(clients, 5).setup().problem.data.splits["train"] for clients in (30, 3000))
    some = slice(0, int(small.offsets[-1]))
    assert torch.equal(small.index, large.index[some]) and torch.equal(small.y, large.y[some])

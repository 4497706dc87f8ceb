"""Numbers for TensorBoard and MLflow."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedopt.report import record as run
from fedopt.report import trackers
from fedopt.types import FedoptError


def test_scalars_are_the_numbers_by_path() -> None:
    line = {
        "exchange": 4,
        "round": 2,
        "program": "train",
        "clients": [1, 2],
        "client_loss": [0.5, 0.25],
        "rejected": [{"client": 3, "reason": "NaN"}],
        "accuracy": 0.5,
        "loss": math.inf,
        "recall": {"N": 1, "Q": None},
        "info": {"deep": {"er": 2.0}, "flag": True, "many": [1.0]},
    }
    assert dict(trackers.scalars(line)) == {
        "round": 2.0,
        "accuracy": 0.5,
        "loss": math.inf,
        "recall/N": 1.0,
        "info/deep/er": 2.0,
        "rejected": 1.0,
    }


@pytest.mark.parametrize(
    ("make", "module"), [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow.entities")]
)
def test_a_missing_package_is_a_clear_error(
    make: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(FedoptError, match=rf"package {make} was needed.*pip install 'fedopt\[track\]'"):
        getattr(trackers, make)(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_holds_the_run(fake_run: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra fedopt[track]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = run.read(fake_run(rounds=6))
    out = tmp_path / "events"
    track = trackers.tensorboard(out)
    assert not out.exists()
    for line in record.lines[:5]:
        track(line)
    track.close()
    # a resumed run starts again from its checkpoint
    track = trackers.tensorboard(out)
    for line in record.lines[3:]:
        track({**line, "accuracy": line["accuracy"] + 1})
    track.close()
    events = EventAccumulator(str(out))
    events.Reload()
    found = events.Scalars("accuracy")
    assert [event.step for event in found] == list(range(6))
    wanted = [line["accuracy"] + (i > 2) for i, line in enumerate(record.lines)]
    assert [event.value for event in found] == pytest.approx(wanted, rel=1e-6)
    assert {"recall/N", "seconds/map", "info/trust", "client_eval/score_p10", "rejected"} <= set(
        events.Tags()["scalars"]
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_holds_the_run_and_a_resumed_one_goes_on(fake_run: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="needs the extra fedopt[track]")
    pytest.importorskip("sqlalchemy", reason="needs MLflow's database store, the package mlflow")
    from mlflow.tracking import MlflowClient

    folder = fake_run(rounds=4, classes=("N", "a+b: c"))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    lines = run.read(folder).lines
    track = trackers.mlflow(folder, tracking_uri=uri)
    for line in lines[:2]:
        track(line)
    (folder / "run.json").write_text(json.dumps({"status": "interrupted"}))
    track.close()
    client = MlflowClient(uri)
    first = track.run_id
    assert first
    assert client.get_run(first).info.status == "KILLED"

    track = trackers.mlflow(folder, tracking_uri=uri)
    for line in lines[2:]:
        track(line)
    (folder / "run.json").write_text(json.dumps({"status": "finished"}))
    track.close()
    assert track.run_id == first
    stored = client.get_run(first)
    assert stored.info.status == "FINISHED"
    assert stored.info.run_name == "krum against IPM"
    assert stored.data.params["optimizer.lr"] == "0.1"
    assert stored.data.params["attack_0_.name"] == "ipm"
    history = client.get_metric_history(first, "accuracy")
    assert [(m.step, m.value) for m in history] == [(i, pytest.approx(x["accuracy"])) for i, x in enumerate(lines)]
    assert "recall/a_b_ c" in stored.data.metrics


def test_a_tracker_that_saw_nothing_is_closed_in_peace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow may leave a database where it is
    for name, module in (("tensorboard", "tensorboard"), ("mlflow", "mlflow")):
        try:
            __import__(module)
        except ImportError:
            continue
        made: Any = getattr(trackers, name)(tmp_path / name)
        made.close()
        assert not (tmp_path / name).exists()

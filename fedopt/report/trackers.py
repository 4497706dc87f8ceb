"""A run's numbers for TensorBoard and MLflow, line by line; both packages are optional."""

from __future__ import annotations

import importlib
import json
import re
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from fedopt.report.compare import flat
from fedopt.report.record import Line
from fedopt.types import FedoptError


class Tracker(Protocol):
    """Takes each line of a run's record, and is closed at its end."""

    def __call__(self, line: Line) -> None: ...
    def close(self) -> None: ...


LEFT_OUT = ("clients", "client_loss", "client_samples", "client_steps", "exchange")
"""What a tracker leaves out: values by client, and the step itself."""

AT_ONCE = 100
"""How many values MLflow takes in one request."""


def scalars(line: Line) -> Iterator[tuple[str, float]]:
    """The numbers of a line by their path, `recall/N`, `seconds/map`; the rejected answers as their count.

    NaN and infinity are handed on: that a run diverged is something to see.
    """

    def walk(where: str, value: Any) -> Iterator[tuple[str, float]]:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield from walk(f"{where}/{key}" if where else str(key), inner)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield where, float(value)

    yield from walk("", {key: value for key, value in line.items() if key not in LEFT_OUT})
    if isinstance(line.get("rejected"), list):
        yield "rejected", float(len(line["rejected"]))


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise FedoptError(
            f"the package {package} was needed to track the run, and cannot be imported ({error}); install it with "
            f"`pip install 'fedopt[track]'`, or leave the tracker out"
        ) from error


class tensorboard:
    """Writes event files for TensorBoard to the folder `path_out`; the step is the exchange.

    The folder is made with the first line, whose exchange tells a resumed run from a new one: what an interrupted run
    wrote from there on is void.
    """

    def __init__(self, path_out: str | Path) -> None:
        self._path = Path(path_out)
        self._module = _import("torch.utils.tensorboard", "tensorboard")
        self._writer: Any = None

    def __call__(self, line: Line) -> None:
        """Write the numbers of one line."""
        step = int(line["exchange"])
        if self._writer is None:
            self._writer = self._module.SummaryWriter(str(self._path), purge_step=step or None)
        for name, value in scalars(line):
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is pending."""
        if self._writer is not None:
            self._writer.close()


class mlflow:
    """Logs to MLflow; the step is the exchange.

    path_out: the run folder. Its config gives the parameters and the name; the file `mlflow-run` in it holds the id
        of the MLflow run, so that a resumed run goes on where it was.
    tracking_uri: where MLflow keeps its runs, such as `sqlite:///mlflow.db` or a server's address; None takes
        MLflow's own setting.
    experiment: the experiment's name; it is made where it does not exist.
    """

    def __init__(self, path_out: str | Path, tracking_uri: str | None = None, experiment: str = "fedopt") -> None:
        self._path = Path(path_out)
        self._experiment = experiment
        self._entities = _import("mlflow.entities", "mlflow")
        self._client = _import("mlflow.tracking", "mlflow").MlflowClient(tracking_uri)
        self.run_id: str | None = None

    def __call__(self, line: Line) -> None:
        """Log the numbers of one line."""
        step = int(line["exchange"])
        if self.run_id is None:
            self.run_id = self._continued() if step else None
            self.run_id = self.run_id or self._begun()
        now = time.time_ns() // 1_000_000
        metrics = [self._entities.Metric(_safe(name), value, now, step) for name, value in scalars(line)]
        for i in range(0, len(metrics), AT_ONCE):
            self._client.log_batch(self.run_id, metrics=metrics[i : i + AT_ONCE])

    def close(self) -> None:
        """End the MLflow run, as failed where the run's own status says so."""
        if self.run_id is None:
            return
        about = self._path / "run.json"
        status = json.loads(about.read_text(encoding="utf-8")).get("status") if about.is_file() else ""
        ends = {"failed": "FAILED", "interrupted": "KILLED"}
        self._client.set_terminated(self.run_id, ends.get(str(status), "FINISHED"))

    def _continued(self) -> str | None:
        """The MLflow run that this run folder has already, if MLflow still knows it."""
        note = self._path / "mlflow-run"
        if not note.is_file():
            return None
        known = note.read_text(encoding="utf-8").strip()
        try:
            self._client.update_run(known, status="RUNNING")
        except _import("mlflow.exceptions", "mlflow").MlflowException:
            return None
        return known

    def _begun(self) -> str:
        """A new MLflow run with the config as its parameters."""
        client, file = self._client, self._path / "config.toml"
        config = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        found = client.get_experiment_by_name(self._experiment)
        home = found.experiment_id if found else client.create_experiment(self._experiment)
        name = config.get("run", {}).get("name") or self._path.name
        made: str = client.create_run(home, run_name=name).info.run_id
        # MLflow takes at most 6000 characters for a parameter
        params = [self._entities.Param(_safe(key), str(value)[:6000]) for key, value in flat(config).items()]
        for i in range(0, len(params), AT_ONCE):
            client.log_batch(made, params=params[i : i + AT_ONCE])
        self._path.mkdir(parents=True, exist_ok=True)
        (self._path / "mlflow-run").write_text(made + "\n", encoding="utf-8")
        return made


def _safe(name: str) -> str:
    """A name as MLflow allows it: letters, digits, and _ - . / and spaces."""
    return re.sub(r"[^\w\-./ ]", "_", name, flags=re.ASCII)

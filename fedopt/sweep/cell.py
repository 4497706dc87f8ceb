"""One cell in its folder: begun, gone on with, or found to be done; whatever goes wrong is its outcome."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedopt.config import Config
from fedopt.execution import execute, is_run
from fedopt.report import html, trackers
from fedopt.setup import Setup, build
from fedopt.sweep.ledger import DONE, LOCK, Outcome, foreign, look
from fedopt.types import FedoptError

log = logging.getLogger(__name__)


def work(
    config: Config,
    key: str,
    folder: Path,
    *,
    report: bool = True,
    follow: Callable[[dict[str, Any]], object] | None = None,
) -> Outcome:
    """Run a cell to its end, from its newest checkpoint if it has one. Errors are outcomes.

    follow: called with each line of the record.
    """
    try:
        setup = build(config)
    except FedoptError as error:
        return Outcome("refused", str(error))
    except Exception as error:
        log.exception("%s cannot be built", folder)
        return Outcome("failed", _said(error))
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        return Outcome("elsewhere")
    except OSError as error:
        return Outcome("failed", f"the folder {folder} cannot be used ({error})")
    try:
        if refusal := foreign(folder, key):
            return Outcome("failed", refusal)
        if look(folder, key, held=False).state == "finished":
            return Outcome("finished")
        return _run(setup, folder, report, follow)
    finally:
        lock.release()


def _run(setup: Setup, folder: Path, report: bool, follow: Callable[[dict[str, Any]], object] | None) -> Outcome:
    tracking: list[trackers.Tracker] = []

    def told(line: dict[str, Any]) -> None:
        for each in (follow, *tracking):
            if each is not None:
                each(line)

    try:
        tracking += [getattr(trackers, name)(folder) for name in setup.config.run.track]
        result = execute(setup, folder, callbacks=[told], resume=is_run(folder))
        return Outcome("finished" if result.status in DONE else "interrupted")
    except KeyboardInterrupt:
        return Outcome("interrupted")
    except Exception as error:
        if not isinstance(error, FedoptError):
            log.exception("%s failed", folder)
        return Outcome("failed", _reason(folder, error))
    finally:
        for tracker in tracking:
            tracker.close()
        if report:
            with contextlib.suppress(FedoptError, OSError):  # a cell without a report is a cell all the same
                html.write(folder)


def _reason(folder: Path, error: Exception) -> str:
    """Why the run failed: as its folder says, where it says so of this very error."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        reason = str(json.loads((folder / "run.json").read_text(encoding="utf-8"))["reason"])
        if str(error) and reason.endswith(str(error)):
            return reason
    return _said(error)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, FedoptError) else f"{type(error).__name__}: {error}"

"""The tables of docs/optimizers.md, from what is stored."""

from __future__ import annotations

import math
import statistics

from bench.optimizers import runs
from bench.pages import filled
from bench.processes import ROOT
from bench.table import rows

PAGE = ROOT / "docs" / "optimizers.md"
COMMAND = "python -m bench.optimizers"


def write() -> None:
    """Write them."""
    PAGE.write_text(filled(PAGE.read_text(), COMMAND, "\n".join(table(name) for name in runs.TASKS)))


def table(name: str) -> str:
    """A task: the mean over the seeds of the tuned runs, by the loss on the test data."""
    body, missing = [], []
    for arm, kind in runs.ARMS.items():
        found = runs.read(name, arm)
        if not {*runs.SEEDS} <= {one.seed for one in found}:
            missing.append(arm)
            continue
        factor = runs.best(found)
        tuned = [one for one in found if one.factor == factor]
        whole = runs.TASKS[name].rounds * runs.TASKS[name].steps
        short = min(one.steps for one in tuned) < whole
        per_step = min(one.seconds / one.steps for one in found)
        edge = factor in (runs.FACTORS[0], runs.FACTORS[-1])
        loss = statistics.mean(one.loss for one in tuned)
        lost = any(not math.isfinite(one.held_out) for one in tuned)
        body.append(
            (
                math.inf if lost else loss,
                [
                    f"`{arm}`" + (" †" if short else ""),
                    "lost" if lost else f"{loss:.4g} ± {statistics.stdev(one.loss for one in tuned):.2g}",
                    f"{100 * statistics.mean(one.accuracy for one in tuned):.2f}",
                    f"{kind.base * factor:.2g}" + (" ‡" if edge else ""),
                    f"{1e3 * per_step:.2f}",
                    f"{tuned[0].state:.1f}",
                ],
            )
        )
    head = ("", "loss", "accuracy, %", "peak", "ms a step", "state, bytes a parameter")
    text = f"**{name}**\n\n{rows(head, [row for _, row in sorted(body, key=lambda pair: pair[0])])}"
    return text + (f"\nNot measured: {', '.join(missing)}.\n" if missing else "")

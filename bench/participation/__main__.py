"""Who takes part, and how many: the runs, the figures, the table and the picture of docs/participation.md.

    python -m bench.participation [--jobs 2] [--only participation-ecg ...] [--draw]

Runs the sweeps in configs/ as `fedopt sweep` does, with cells in runs/participation-cells: what is finished is not run
again, and what was stopped goes on. Figures go to bench/results/, and the page between its marks is made of them alone.
With --draw nothing is run; sweeps that are there are read, and of the others the figures that are stored.

Needs FEDOPT_DATA with mnist10k/ and mitdb/.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from bench.pages import filled
from bench.participation import figures, pace, picture, table
from bench.participation.studies import STUDIES, TIMED, WAITING
from bench.processes import ROOT
from fedopt import sweep as sweeps
from fedopt.report import sweep as reports
from fedopt.sweep import Sweep

RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "participation.md"
PICTURE = ROOT / "docs" / "participation.svg"
RUNS = ROOT / "runs"
NAMES = (*(study.name for study in STUDIES), TIMED)
COMMAND = "python -m bench.participation"


def planned(name: str) -> Sweep:
    """A sweep by the name of its config."""
    return sweeps.read(ROOT / "configs" / f"{name}.toml", out=RUNS / name, cache=RUNS / "participation-cells")


def store(plan: Sweep) -> bool:
    """The figures of a sweep that was run, into bench/results/; False where nothing of it is there."""
    if not (plan.out / "sweep.json").exists():
        return False
    found = reports.read(plan.out)
    if plan.name == TIMED:
        told = pace.lines(found, plan.out, WAITING)
    else:
        [study] = [study for study in STUDIES if study.name == plan.name]
        told = figures.lines(found, plan.out, study.beside)
    (RESULTS / f"{plan.name}.csv").write_text(figures.text(told), encoding="utf-8")
    return True


def block() -> tuple[str, bytes]:
    """What the page says between its marks, and the picture, of the figures that are stored."""
    parts, panels = [f"![Accuracy against uploads]({PICTURE.name})\n"], []
    for study in STUDIES:
        plan, stored = planned(study.name), figures.read(RESULTS / f"{study.name}.csv")
        found = [figures.results(plan, stored, metric) for metric in (plan.metric, *study.beside)]
        parts.append(table.against_uploads(study, found))
        panels.append((study.title, found[0]))
    timed = planned(TIMED)
    parts.append(table.against_time(timed.metric, figures.read(RESULTS / f"{TIMED}.csv")))
    return "\n".join(parts), picture.drawn(panels)


def write() -> None:
    """The page and its picture."""
    text, drawing = block()
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), COMMAND, text), encoding="utf-8")
    PICTURE.write_bytes(drawing)


def main() -> None:
    """Run what is not finished, then store and write."""
    given = _arguments()
    console = Console()
    failed = False
    for name in given.only or NAMES:
        plan = planned(name)
        if not given.draw:
            ledger, stopped = sweeps.run(plan, given.jobs, console=console)
            if stopped:
                console.print("run the same command again to go on")
                sys.exit(130)
            failed |= "failed" in ledger.counts()
        console.print(f"{name}: {'figures of its runs' if store(plan) else 'no runs'}", highlight=False)
    write()
    for path in (PAGE, PICTURE):
        console.print(f"written: {path.relative_to(Path(ROOT))}", highlight=False)
    sys.exit(1 if failed else 0)


def _arguments() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--jobs", type=int, default=1, help="cells at a time, a process of one thread each")
    arguments.add_argument("--only", nargs="*", choices=NAMES, help="these sweeps alone")
    arguments.add_argument("--draw", action="store_true", help="run nothing; write what there is")
    return arguments.parse_args()


if __name__ == "__main__":
    main()

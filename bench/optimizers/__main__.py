"""Local optimizers over small tasks: measure, then write the tables of docs/optimizers.md.

    python -m bench.optimizers [--task "digits, MLP" ...] [--arm muon ...] [--jobs 2] [--draw]

What is measured already is not measured again; with --draw nothing is. Needs FEDOPT_DATA with libsvm/a9a,
libsvm/mushrooms, mnist10k and shakespeare.
"""

from __future__ import annotations

import argparse
import itertools
from concurrent.futures import ProcessPoolExecutor, as_completed

from rich.console import Console

from bench.optimizers import page, runs


def main() -> None:
    """Measure what is not measured, and draw."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--task", nargs="*", default=list(runs.TASKS), choices=list(runs.TASKS))
    arguments.add_argument("--arm", nargs="*", default=list(runs.ARMS), choices=list(runs.ARMS))
    arguments.add_argument("--jobs", type=int, default=2)
    arguments.add_argument("--draw", action="store_true")
    given = arguments.parse_args()
    console = Console()
    wanted = [] if given.draw else list(itertools.product(given.task, given.arm))
    with ProcessPoolExecutor(given.jobs) as pool:
        running = {pool.submit(runs.search, *which): which for which in wanted}
        for number, done in enumerate(as_completed(running), 1):
            found = done.result()
            final = [one for one in found if one.factor == runs.best(found)]
            loss = sum(one.loss for one in final) / len(final)
            seconds = sum(one.seconds for one in found)
            console.print(f"{number:3d}/{len(wanted)} {', '.join(running[done])}: {loss:.4g} in {seconds:.0f} s")
    page.write()
    console.print(f"wrote {page.PAGE.name}")


if __name__ == "__main__":
    main()

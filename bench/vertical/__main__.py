"""Vertical methods against iterations and bytes: measure, then write the tables of docs/vfl.md and docs/vertical.svg.

    python -m bench.vertical [--data a9a w8a mushrooms] [--loss squares logistic] [--arm egvfl ...] [--jobs 2] [--draw]

What is measured already is not measured again; with --draw nothing is. Needs FEDOPT_DATA with libsvm/a9a, libsvm/w8a
and libsvm/mushrooms.
"""

from __future__ import annotations

import argparse
import itertools
from concurrent.futures import ProcessPoolExecutor, as_completed

from rich.console import Console

from bench.vertical import grid, page


def main() -> None:
    """Measure what is not measured, and draw."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--data", nargs="*", default=list(grid.DATA), choices=list(grid.DATA))
    arguments.add_argument("--loss", nargs="*", default=list(grid.LOSSES), choices=grid.LOSSES)
    arguments.add_argument("--arm", nargs="*", default=list(grid.ARMS), choices=list(grid.ARMS))
    arguments.add_argument("--jobs", type=int, default=2)
    arguments.add_argument("--draw", action="store_true")
    given = arguments.parse_args()
    console = Console()
    wanted = [] if given.draw else [(d, loss, a) for loss, d, a in itertools.product(given.loss, given.data, given.arm)]
    with ProcessPoolExecutor(given.jobs) as pool:
        running = {pool.submit(grid.search, *which): which for which in wanted}
        for number, done in enumerate(as_completed(running), 1):
            found, which = done.result(), " ".join(running[done])
            best = grid.best(found)
            said = f"never below {grid.GOAL:g}"
            if best is not None:
                last = best.points[-1]
                said = (
                    f"{last.iteration} iterations, {last.bytes / 1e6:.1f} MB with {best.multiple:g} x the safe step and"
                    f" s = {best.constraint:g}"
                )
            seconds = sum(cell.seconds for cell in found)
            console.print(f"{number:3d}/{len(wanted)} {which}: {said}; {len(found)} runs, {seconds:.0f} s")
    page.write()
    console.print(f"wrote {page.PAGE.name} and {page.PICTURE.name}")


if __name__ == "__main__":
    main()

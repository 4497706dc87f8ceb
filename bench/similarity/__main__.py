"""Methods under data similarity on real data: measure what is not stored, then write the tables of docs/similarity.md.

    python -m bench.similarity [--task a9a-squares-20 ...] [--method aeg ...] [--draw]

With --draw nothing is measured. Needs FEDOPT_DATA with libsvm/a9a, libsvm/mushrooms and mitdb.
"""

from __future__ import annotations

import argparse

from rich.console import Console

from bench.similarity import cases, page, runs


def main() -> None:
    """Measure, and write."""
    tasks = {task.word: task for task in (*cases.separated(), *cases.published())}
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--task", nargs="*", default=list(tasks), choices=list(tasks))
    arguments.add_argument("--method", nargs="*", default=[*cases.SINGLE, *cases.TWO])
    arguments.add_argument("--draw", action="store_true")
    given = arguments.parse_args()
    console = Console()
    wanted = [] if given.draw else [tasks[word] for word in given.task]
    for task in wanted:
        for name in cases.TWO if task.groups else cases.SINGLE:
            if name not in given.method:
                continue
            cell = runs.measured(task, name)
            last = cell.points[-1]
            console.print(
                f"{task.word}, {name}: {cell.ended}, gap {last.gap:.1e} after {last.rounds_f} and {last.rounds_g}"
                f" rounds, {last.messages} messages; {cell.seconds:.0f} s"
            )
    page.write()
    console.print(f"wrote {page.PAGE.name}")


if __name__ == "__main__":
    main()

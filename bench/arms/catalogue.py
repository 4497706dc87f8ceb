"""Which arms there are, how each is started, and on which tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bench.tasks import TASKS, Task


class Arm(NamedTuple):
    """One way to run a task, in a process of its own."""

    name: str
    title: str
    kind: str
    """`fedopt`, `pfl`, `plain` or `flower`: the module below bench.arms; `plain` runs in the environment of fedopt."""
    arguments: tuple[str, ...]
    threads: int
    """In each process."""
    processes: int
    """That compute."""
    wanted: Callable[[Task], bool] = lambda task: True
    fixed: bool = False
    """An executor of fedopt that does not choose: what `auto` is compared with."""
    one_process: bool = True

    @property
    def peer(self) -> bool:
        return self.kind in ("pfl", "flower")

    @property
    def alone(self) -> bool:
        """Flower's simulation polls while it waits, so it does not wait beside the others."""
        return self.kind == "flower"

    @property
    def anew(self) -> bool:
        """Whether each repetition has a process of its own.

        Two processes with the same executor differ by several percent for as long as they live, which is as much as
        `auto` may lose; so that comparison needs several of them.
        """
        return self.name == "fedopt-auto" or (self.fixed and "stacked" in self.name)


def arms(cores: int) -> tuple[Arm, ...]:
    """All arms for a machine of so many cores."""
    every, two = str(cores), cores > 1

    def fedopt(name: str, title: str, *arguments: str, threads: int = 1, processes: int = 1, **more: object) -> Arm:
        fixed = name != "auto"
        return Arm(f"fedopt-{name}", title, "fedopt", arguments, threads, processes, fixed=fixed, **more)  # type: ignore[arg-type]

    found = [
        fedopt("serial", "fedopt, serial", "--executor", "serial"),
        fedopt("stacked", "fedopt, stacked", "--executor", "stacked"),
        fedopt("ray-serial", "fedopt, ray of serial", "--executor", "ray", "--inner", "serial", "--workers", every,
               processes=cores, one_process=False),
        fedopt("ray-stacked", "fedopt, ray of stacked", "--executor", "ray", "--inner", "stacked", "--workers", every,
               processes=cores, one_process=False),
        fedopt("auto", "fedopt, auto", "--executor", "auto", processes=0, one_process=False),
    ]  # fmt: skip
    if two:
        all_threads = ("--threads", every)
        found[2:2] = [
            fedopt("serial-threads", "fedopt, serial, all threads", "--executor", "serial", *all_threads,
                   threads=cores, wanted=_heavy),
            fedopt("stacked-threads", "fedopt, stacked, all threads", "--executor", "stacked", *all_threads,
                   threads=cores),
        ]  # fmt: skip
    for kind, title in (("plain", "plain loop"), ("pfl", "pfl")):
        for fused in (False, True):
            suffix, note = ("-fused", ", torch.nn.LSTM") if fused else ("", "")
            extra = ("--fused",) if fused else ()
            wanted = _wants(kind, fused)
            found.append(Arm(f"{kind}{suffix}", f"{title}{note}", kind, extra, 1, 1, wanted))
            if two:
                found += [
                    Arm(f"{kind}-threads{suffix}", f"{title}, all threads{note}", kind,
                        ("--threads", every, *extra), cores, 1, wanted),
                    Arm(f"{kind}-processes{suffix}", f"{title}, {cores} processes{note}", kind,
                        ("--processes", every, *extra), 1, cores, wanted, one_process=False),
                ]  # fmt: skip
    found.append(
        Arm("flower", "Flower simulation", "flower", ("--workers", every), 1, cores, _wants("flower", False),
            one_process=False)
    )  # fmt: skip
    found.append(
        Arm("flower-fused", "Flower simulation, torch.nn.LSTM", "flower", ("--workers", every, "--fused"), 1, cores,
            _wants("flower", True), one_process=False)
    )  # fmt: skip
    found.append(
        Arm("flower-quickstart", "Flower simulation, app of its quickstart", "flower",
            ("--workers", every, "--quickstart"), 1, cores, _of_equal_shares, one_process=False)
    )  # fmt: skip
    return tuple(found)


def _of_equal_shares(task: Task) -> bool:
    """Where Flower Datasets can give the task's own partitions, on the network that its figure is compared for."""
    return "flower" in task.peers and task.net == "mlp" and task.work == "train"


def _heavy(task: Task) -> bool:
    return task.net != "mlp" and task.work == "train"


def _wants(kind: str, fused: bool) -> Callable[[Task], bool]:
    return lambda task: kind in task.peers and (not fused or task.net == "char_lstm")


def cells(cores: int, *, quick: bool = False) -> list[tuple[Task, Arm]]:
    """Every (task, arm) of the tables, tasks in their order.

    The quick ones leave out several threads in one process, which gain nothing on networks so small.
    """
    if quick:
        chosen = [task for task in TASKS.values() if task.quick]
        return [(task, arm) for task in chosen for arm in arms(cores) if arm.wanted(task) and arm.threads == 1]
    return [(task, arm) for task in TASKS.values() for arm in arms(cores) if arm.wanted(task)]

"""fedopt against pfl on one GPU: the CNN of pfl's CIFAR-10 benchmark and the digits MLP, with the roofline of a round.

python -m bench.gpu [--device cuda] [--task cnn mlp-100] [--processes 1 2 4 8]
python -m bench.gpu --device cpu --small            (a trial of the script itself; not shown in the page)
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch

from bench import counted, machine, tasks
from bench.processes import ArmFailed, Process, environment
from bench.run import ANSWER_S, STARTUP_S, python, store


def limits(device: str) -> tuple[float, float]:
    """Measured on the device: float32 matrix products in FLOP/s, and copies in bytes moved (read and written) per s."""
    size = 1024 if device == "cpu" else 8192
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    source = torch.ones(2**24 if device == "cpu" else 2**28, device=device)
    target = torch.empty_like(source)

    def finished(work: Any) -> Any:
        def run() -> None:
            work()
            if device != "cpu":
                torch.cuda.synchronize()

        return run

    products = machine.best(finished(lambda: a @ b), 5)
    copies = machine.best(finished(lambda: target.copy_(source)), 5)
    return 2 * size**3 / products, 2 * 4 * source.numel() / copies


def rate(kind: str, task: tasks.Loaded, options: list[str], threads: int, rounds: int) -> float:
    """Client updates per second of an arm: median of three repetitions after a warm-up."""
    command = [str(python(kind)), "-m", f"bench.arms.{kind}", task.task.name, "--cohort", str(task.cohort), *options]
    process = Process(command, environment(threads), STARTUP_S)
    try:
        process.ask(ANSWER_S, do="rounds", count=2)
        answers = [process.ask(ANSWER_S, do="rounds", count=rounds) for _ in range(3)]
    finally:
        process.end()
    return float(statistics.median(task.cohort * answer["rounds"] / answer["seconds"] for answer in answers))


def measure(name: str, device: str, processes: list[int], *, small: bool) -> dict[str, Any]:
    """The line of one task."""
    tasks.make(name)
    task = tasks.load(name, cohort=4 if small else None)
    rounds = 2 if small else 20
    flops, moved = limits(device)
    ours = ["--executor", "stacked", *(["--device", device] if device != "cpu" else [])]
    fedopt = rate("fedopt", task, ours, 1, rounds)
    pfl: dict[int, float] = {}
    failed: dict[int, str] = {}
    for count in processes:
        try:
            pfl[count] = rate("pfl", task, ["--device", device, "--processes", str(count)], 1, rounds)
        except ArmFailed as failure:
            failed[count] = str(failure)
    if not pfl:
        raise SystemExit(f"pfl ran with none of {processes} processes: {failed}")
    best = max(pfl, key=lambda count: pfl[count])
    floor = max(counted.round_flops(task) / flops, counted.round_bytes(task) / moved)
    return {
        "task": name,
        "device": device,
        "device_name": torch.cuda.get_device_name() if device != "cpu" else machine.describe()["processor"],
        "small": small,
        "cohort": task.cohort,
        "fedopt_rate": fedopt,
        "pfl_rates": pfl,
        "pfl_failed": failed,
        "pfl_rate": pfl[best],
        "pfl_processes": best,
        "ratio": fedopt / pfl[best],
        "gemm_tflops": flops / 1e12,
        "copy_gb_per_s": moved / 1e9,
        "gflop": counted.round_flops(task) / 1e9,
        "gigabytes": counted.round_bytes(task) / 1e9,
        "floor_ms": floor * 1e3,
        "round_ms": task.cohort / fedopt * 1e3,
    }


def main() -> None:
    """Measure each task, print its line, store it."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--task", nargs="*", default=["cnn", "mlp-100"], choices=list(tasks.TASKS))
    arguments.add_argument("--processes", nargs="*", type=int, help="numbers of pfl processes to try")
    arguments.add_argument("--small", action="store_true", help="4 clients and 2 rounds, to try the script")
    given = arguments.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; `--device cpu --small` tries the script without one")
    for name in given.task:
        processes = given.processes or ([1, 2] if given.small else [1, 2, 4, 8])
        value = measure(name, given.device, processes, small=given.small)
        print(
            f"{name} on {value['device_name']}: fedopt {value['fedopt_rate']:.1f}, pfl {value['pfl_rate']:.1f} client"
            f" updates/s ({value['pfl_processes']} processes), ratio {value['ratio']:.2f};"
            f" a round takes {value['round_ms']:.2f} ms; its operations and bytes, {value['floor_ms']:.2f} ms at least"
        )
        if not given.small:
            store(f"gpu.{name}", value)


if __name__ == "__main__":
    main()

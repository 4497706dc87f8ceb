"""The machine that a measurement was made on: what it is, and what it can do at most."""

from __future__ import annotations

import os
import platform
import re
import time
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    """Processor, cores, memory, system, versions."""
    import torch

    return {
        "processor": _processor(),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def identity(description: dict[str, Any]) -> str:
    """A folder's name for the machine: processor and cores."""
    slug = re.sub(r"[^a-z0-9]+", "-", description["processor"].lower()).strip("-")
    return f"{slug}-{description['cores']}-cores"


def limits(repetitions: int = 5) -> dict[str, float]:
    """Measured ceilings: float32 matrix products in GFLOP/s and copies in GB/s, with one thread and with all.

    A copy of n bytes counts as n bytes moved; it reads n and writes n.
    """
    import torch

    found = {}
    before = torch.get_num_threads()
    for label, threads in (("1", 1), ("all", cores())):
        torch.set_num_threads(threads)
        a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
        out = torch.empty(1536, 1536)
        source = torch.ones(2**26)  # 256 MB, far beyond the caches
        target = torch.empty_like(source)
        products = best(lambda: torch.mm(a, b, out=out), repetitions)  # noqa: B023 - called at once
        copies = best(lambda: target.copy_(source), repetitions)  # noqa: B023 - called at once
        found[f"gemm_gflops_{label}"] = 2 * 1536**3 / products / 1e9
        found[f"copy_gb_per_s_{label}"] = source.numel() * 4 / copies / 1e9
    torch.set_num_threads(before)
    return found


def best(work: Any, repetitions: int) -> float:
    """The least seconds of several calls, after one that does not count."""
    work()
    seconds = []
    for _ in range(repetitions):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

"""Freed memory stays with the process, once it has found its places: measured in faults, in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_SCRIPT = """
import resource, sys, torch
from fedopt.engine.allocator import keep_freed
assert keep_freed() if sys.argv[1] == "keep" else True
faults = []
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10_000_000).mul(2.0)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(faults[15:])[2])  # of a single one, the kernel may have taken pages back
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_large_tensors_are_not_faulted_in_again() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", _SCRIPT, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)

    assert faults("let go") > 1000, "the C library kept the memory by itself, so nothing is shown here"
    assert faults("keep") < 100

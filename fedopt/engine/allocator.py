"""Freed memory stays with the process, for the next round needs as much again."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
"""Of mallopt(3)."""

_MOST = 2**31 - 1


def keep_freed() -> bool:
    """Tell the C library to give no memory below 2 GB back to the system; whether it listens (glibc does).

    It otherwise returns every large tensor at once, and each first touch of a page that the system hands out anew is a
    fault: a model of 1.6 million values costs more in faults than in arithmetic.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # threads share one arena: another one is made of pieces of 64 MB, and what is larger comes from the system
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _MOST, _ARENA_MAX: 1}
    return all([bool(mallopt(name, value)) for name, value in settings.items()])

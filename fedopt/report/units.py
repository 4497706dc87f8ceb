"""Numbers as people read them: bytes, durations, measures, counts."""

from __future__ import annotations


def nbytes(count: float) -> str:
    """Bytes with a decimal unit: `950 B`, `1.25 kB`, `3.40 GB`."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB", "PB"]
    while abs(value) >= 999.5 and len(units) > 1:
        value /= 1000.0
        units.pop(0)
    return f"{_three(value) if units[0] != 'B' else f'{value:.0f}'} {units[0]}"


def _three(value: float) -> str:
    """Three significant digits without an exponent."""
    size = abs(value)
    return f"{value:.{2 if size < 9.995 else 1 if size < 99.95 else 0}f}"


def duration(seconds: float) -> str:
    """`0.35 s`, `12.4 s`, `3 min 05 s`, `2 h 14 min`, `3 d 04 h`."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, part, big, small in ((3600, 60, "min", "s"), (86400, 3600, "h", "min")):
        if whole < size:
            return f"{whole // part} {big} {whole % part // (part // 60):02d} {small}"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def is_share(name: str) -> bool:
    """True for measures between 0 and 1 that are written in per cent."""
    return name.split(".")[0] in ("accuracy", "recall", "g_mean", "macro_f1", "backdoor") or name == "client_eval.score"


def measure(name: str, value: float | None, deviation: float | None = None) -> str:
    """A value of the measure `name`: per cent for accuracies, four digits for losses, a dash where there is none.

    With a `deviation` as `92.79 ± 0.19 %`.
    """
    if value is None:
        return "–"
    share = is_share(name) and abs(value) <= 1
    shown = f"{100 * value:.2f}" if share else f"{value:.4g}"
    if deviation is not None:
        shown += f" ± {100 * deviation:.2f}" if share else f" ± {deviation:.2g}"
    return shown + (" %" if share else "")


def percent(share: float) -> str:
    """A share with three digits: `12.5 %`."""
    return f"{100 * share:.3g} %"


def count(value: float) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{value:,.0f}".replace(",", "\u202f")


def label(name: str) -> str:
    """A measure's name for people: `client_eval.score` is `score at the clients`."""
    group, _, inner = name.partition(".")
    if group == "backdoor" and inner:
        return f"backdoor {inner}"
    known = {
        "client_eval.score": "score at the clients",
        "client_eval.loss": "loss at the clients",
        "train_loss": "training loss",
        "g_mean": "G-mean",
        "macro_f1": "macro F1",
        "loss": "test loss",
        "epsilon": "ε spent",
        "clip": "clipping norm",
        "clipped_share": "clipped clients, share",
        "noise_std": "noise, standard deviation",
    }
    return known.get(name, name.replace("_", " "))

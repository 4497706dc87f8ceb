"""What is measured: sweeps by the name of their config, and how their settings are called."""

from __future__ import annotations

import re
from typing import NamedTuple

FIXED = re.compile(r"m_(\w+)")
"""A setting with a fixed head-count."""

ISP = {
    "isp_uniform": "uniform + ISP",
    "isp_pow_d": "POW-D + ISP",
    "isp_fedcor": "FedCor + ISP",
    "isp_guarded": "uniform + ISP, guarded form",
    "isp_paper": "uniform + ISP, as published",
}
CODECS = {"none": "", "topk_5": "Top-K 5 %, EF14"}
STRATEGIES = {"fedavg": "FedAvg", "fedbuff": "FedBuff", "fedasync": "FedAsync"}


class Study(NamedTuple):
    """A sweep over head-counts (rows) and codecs (columns)."""

    name: str
    """Of the config, and of the file of its figures."""
    title: str
    baseline: str
    """The setting that others are held against."""
    beside: tuple[str, ...] = ()
    """Measures that are told beside the sweep's own."""


STUDIES = (
    Study("participation-mnist", "MNIST, 100 clients", "m_20"),
    Study("participation-ecg", "ECG, 17 patients", "m_all", ("accuracy",)),
)

TIMED = "asynchronous-mnist"
"""The sweep over strategies on one virtual clock."""
WAITING = "fedavg"
"""Its strategy that waits for everybody, and sets the accuracy to be reached."""


def fixed(setting: str) -> str | None:
    """The head-count of a setting where it is fixed: `20`, or `all`."""
    match = FIXED.fullmatch(setting)
    return match.group(1) if match else None


def label(setting: str, codec: str = "none") -> str:
    """A setting for people: `m = 20`, `POW-D + ISP, Top-K 5 %, EF14`."""
    number = fixed(setting)
    name = f"m = {number}" if number else ISP.get(setting, setting)
    return ", ".join(filter(None, (name, CODECS.get(codec, codec))))

"""Infinity and NaN: what is sent, and that the engine turns it away."""

from __future__ import annotations

import math

import pytest
import torch

from fedopt.attacks import build
from fedopt.attacks.infinite import infinite
from fedopt.engine.collect import screen
from fedopt.registry import ConfigError
from fedopt.testing import check_attack
from fedopt.types import Uplink


@pytest.mark.parametrize("value", ["inf", "nan"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_coordinate_of_every_attacker_is_no_number(value: str, dtype: torch.dtype) -> None:
    own = torch.ones(3, 4, dtype=dtype)
    sent = infinite(own, value=value)  # type: ignore[arg-type]
    of = math.isinf if value == "inf" else math.isnan
    assert all(of(entry) for row in sent.tolist() for entry in row)
    assert sent.shape == own.shape and sent.dtype == dtype and bool((own == 1.0).all())
    assert value == "nan" or bool((sent > 0).all())


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_the_engine_rejects_it_and_keeps_the_others(value: str) -> None:
    honest = torch.ones(2, 4)
    rows = torch.cat([honest, infinite(honest[:1], value=value)])  # type: ignore[arg-type]
    usable, rejected = screen(torch.tensor([3, 5, 9]), Uplink({"delta": rows}, {}, {}, torch.ones(3)))
    assert torch.tensor([0, 1, 2])[usable].tolist() == [0, 1]
    assert [r.client for r in rejected] == [9]


def test_contract_and_options() -> None:
    check_attack("infinite")
    with pytest.raises(ConfigError, match=r"attack\.value"):
        build("infinite", {"value": "zero"})

"""A Little Is Enough by attackers who know nothing but their own data."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from fedopt.attacks.alie import Deviations, shifted, z_max
from fedopt.registry import declare


@declare(
    reference="Baruch, Baruch, Goldberg 2019, 'A Little Is Enough: Circumventing Defenses For Distributed Learning',"
    " algorithm 3",
    knowledge="colluders",
    examples=({}, {"z": 1.5, "direction": -1}),
)
def alie_colluders(own: Tensor, *, b: int, n: int, z: Deviations = None, direction: Literal[1, -1] = 1) -> Tensor:
    """`alie`, with mean and standard deviation over what the attackers themselves would honestly send.

        sentⱼ = μⱼ + direction · z · σⱼ,    s = ⌊n/2 + 1⌋ - b,    z = Φ⁻¹((n - b - s) / (n - b))

    μⱼ and σⱼ are over the b attackers' honest updates (divisor b). A single attacker has no deviation and sends its
    own honest update.

    own: the attackers' honest updates `[b, d]`.
    z, direction: as in `alie`.
    Returns `[b, d]`, equal rows.

    Differences from the paper: it does not state the divisor of the deviation; it gives no finite z from half of the
    clients on (see `fedopt.attacks.alie.z_max`).
    """
    return shifted(own, b, direction * (z_max(n, b) if z is None else z))

"""Parts of vertical federated learning: parties hold different features of the same people, the server their labels.

With m people and c outputs, party i holds the block A_i of its own features and a bottom network g_i whose weights
x_i never leave it; the outputs add up to the prediction z = Σ_i g_i(x_i; A_i), which is A x where all g_i are linear.

    min_{x, z} max_y  l(z; b) + Σ_i r_i(x_i) + s ⟨y, k Σ_i g_i(x_i) - z⟩

`blocks` is a party's half of the coupling, `losses` and `targets` the label owner's l, `penalties` the r_i.
k = 1/√m turns sums over people into means (`Scale`), s is a free factor of the constraint.
"""

from __future__ import annotations

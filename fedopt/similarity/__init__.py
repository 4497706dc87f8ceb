"""Data similarity: what the server's own data stands in for, and who has to be asked for the rest.

The objective is h = f + g + (l2 / 2) ‖x‖²: f is the mean over one group of clients, g over another (`groups`; without
groups, f is everybody's mean and there is no g). The server has parts f_1 and g_1 of its own (`home`), and asks groups
for gradients (`oracles`), from which the differences P_f = ∇f - ∇f_1 and P_g = ∇g - ∇g_1 follow. Where these change
little from point to point (similarity δ_f, δ_g), most of the work can be done at home, by proximal steps on f_1 + g_1.

`sliding` has the numbers of accelerated extragradient, `epochs` the variance-reduced epochs and their acceleration,
`constants` measures δ_f and δ_g, and `asking` makes one strategy of a method that says what it wants to know next.

Options that methods with two groups share: `rare` names the clients of g; "auto" finds those whose gradients change
least like the server's, by four gradients of everybody before the first step: a share of them (`rare_share`), or those
behind the cut of the sorted logarithms with the least squares. `rare_classes` tells every client's samples apart by
their classes instead.
"""

"""fedopt in plain Flower apps, and Flower's strategies in fedopt's loop; Flower's Message API, 1.41.

    strategy(rule={"name": "krum", "f": 1}).start(grid, arrays)      a rule and a server optimizer in a ServerApp
    served(fedavg(...))                                              a whole fedopt strategy there
    mod({"name": "topk", "share": 0.01, "feedback": "ef21"})         a codec in a ClientApp, and
    decoded(FedAdam(), {"name": "topk", ...})                        its other end around any Flower strategy
    stock(FedAdam(), optimizer=sgd(lr=0.1))                          a Flower strategy for `fedopt.Experiment`

What nodes send is read without trust: names, shapes and lengths are those of the arrays that were sent to them before
anything is allocated, and an answer that is none costs its node the round, not the run.
"""

from fedopt.wire.flower.codec import Decoded, decoded, mod
from fedopt.wire.flower.hosted import Stock, stock
from fedopt.wire.flower.method import Served, served, strategy
from fedopt.wire.flower.vectors import Held

__all__ = ["Decoded", "Held", "Served", "Stock", "decoded", "mod", "served", "stock", "strategy"]

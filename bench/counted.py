"""What a round has to compute and to move, counted from the network and not timed."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import nets
from bench.tasks import Loaded


def batches(task: Loaded) -> float:
    """Local batches of one client in one round, on average over the clients; a short last batch counts by its size."""
    if task.task.steps is not None:
        return float(task.task.steps)
    sizes = (task.offsets[1:] - task.offsets[:-1]).double()
    return float(sizes.mean()) / task.task.batch


def round_flops(task: Loaded) -> float:
    """Floating-point operations of the matrix products and convolutions of one round, forward and backward."""
    module, batch = task.net(), task.task.batch
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(nets.loss(module(task.x[:batch]), task.y[:batch]), list(module.parameters()))
    return float(counter.get_total_flops()) * batches(task) * task.cohort


def round_bytes(task: Loaded) -> float:
    """Bytes of one round at the least: at each local step a client's parameters are read once and written once, and
    the batch is read once."""  # fmt: skip
    sample = task.x[0].numel() * task.x.element_size()
    step = 2 * 4 * task.parameters + task.task.batch * sample
    return float(step) * batches(task) * task.cohort

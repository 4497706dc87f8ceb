"""A process of a sweep: takes cells from the one that started it, `python -m fedopt.sweep.worker FD`, and runs them.

Both ends speak over the socket FD: a cell comes in, `("round", r)` goes out while it runs, and when it is over,
`("ended", state, message)`. What a cell prints lies in the log that is this process's output.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from fedopt import config as configs
from fedopt.sweep.cell import work

TELL_SECONDS = 0.2
"""Between two reports of a round."""


def follow(connection: Connection) -> Callable[[dict[str, Any]], None]:
    """A callback that tells the sweep of rounds, and stops the run, with a checkpoint, where the sweep is gone."""
    told = 0.0

    def tell(line: dict[str, Any]) -> None:
        nonlocal told
        if time.monotonic() - told < TELL_SECONDS:
            return
        told = time.monotonic()
        try:
            connection.send(("round", line["round"]))
        except OSError:
            os.kill(os.getpid(), signal.SIGTERM)

    return tell


def main() -> None:
    """Run cells until there are no more."""
    connection = Connection(int(sys.argv[1]))
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, OSError):
        while True:
            job = connection.recv()
            config, folder = configs.load(job["config"]), Path(job["folder"])
            outcome = work(config, job["key"], folder, report=job["report"], follow=follow(connection))
            connection.send(("ended", *outcome))


if __name__ == "__main__":
    main()

"""Many streams of the link, held for long, with an exchange with everybody every few seconds; TLS, clients that echo.

    python -m bench.streams --streams 200 --processes 4 --seconds 600 [--every 5] [--bytes 19000] [--flower 8]

The clients are `bench/echo.py` in a few processes. With `--flower`, so many of them are started by Flower instead, each
by a ClientApp on a SuperNode of its own, and the server is in a ServerApp. Lost are answers that did not come or were
not what was said; streams that broke are counted, also where the client came back.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.link import Grown, Measured, by_flower, echoes, exchanged, joined, listening, there
from fedopt.wire import authority
from fedopt.wire.link import Keys, Listener

Settings = dict[str, Any]


def held(listener: Listener, streams: int, nbytes: int, seconds: float, every: float, grown: Grown) -> Measured:
    """Exchanges at regular times for so many seconds, one at the end."""
    message, took, lost, fewest = os.urandom(nbytes), list[float](), 0, streams
    began = time.monotonic()
    while (at := began + every * len(took)) <= began + seconds:
        time.sleep(max(0.0, at - time.monotonic()))
        fewest = min(fewest, len(listener.connected))
        one, wrong = exchanged(listener, len(took), streams, message)
        took.append(one)
        lost += wrong
    counts = {name: listener.counts[name] for name in ("joined", "left", "replaced", "refused", "garbage", "late")}
    return {
        "streams": streams, "fewest": fewest, "held_s": time.monotonic() - began, "seconds": took, "lost": lost,
        "answers": streams * len(took), "grown": grown.peak(), "counts": counts,
    }  # fmt: skip


def serve(settings: Settings, pem: Path, keys: Keys, grid: Any = None) -> Measured:
    """The server, with the first `nodes` clients by Flower and the others in processes of this machine."""
    streams, nodes = settings["streams"], settings["nodes"]
    grown = Grown()
    with contextlib.ExitStack() as stack:
        listener, line = stack.enter_context(listening(streams, pem, keys))
        stack.enter_context(echoes(listener, line, pem, range(nodes, streams), settings["processes"]))
        if nodes:
            stack.enter_context(joined(grid, nodes, pem, listener, line))
        there(listener, streams)
        return held(listener, streams, settings["bytes"], settings["seconds"], settings["every"], grown)


def in_flower(grid: Any, settings: Settings) -> Measured:
    """In a ServerApp: the same, beside clients that Flower starts."""
    folder = Path(settings["folder"])
    keys = Keys((folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes())
    return serve(settings, folder / "ca.pem", keys, grid)


def alone(settings: Settings) -> Measured:
    """In this process, without Flower."""
    ca = authority.authority("bench")
    with tempfile.TemporaryDirectory() as folder:
        pem = Path(folder) / "ca.pem"
        pem.write_bytes(ca.certificate)
        return serve({**settings, "nodes": 0}, pem, Keys(*authority.server(ca, ["localhost"])))


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--streams", type=int, default=200)
    arguments.add_argument("--processes", type=int, default=4)
    arguments.add_argument("--seconds", type=float, default=600.0)
    arguments.add_argument("--every", type=float, default=5.0, help="seconds from one exchange to the next")
    arguments.add_argument("--bytes", type=int, default=19_000)
    arguments.add_argument("--flower", type=int, default=0, help="so many of the clients are started by Flower")
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()
    names = ("streams", "processes", "seconds", "every", "bytes")
    settings = {name: getattr(given, name) for name in names}
    found = by_flower(given.flower, "bench.streams:in_flower", **settings) if given.flower else alone(settings)
    found |= {"flower": given.flower, "bytes": given.bytes, "every": given.every, "load": os.getloadavg()}
    took = sorted(1e3 * s for s in found["seconds"])
    print(
        f"{found['streams']} streams ({given.flower} by Flower) held for {found['held_s']:.0f} s, at the fewest"
        f" {found['fewest']}: {len(took)} exchanges, {found['answers']} answers, lost {found['lost']}, streams that"
        f" broke {found['counts']['joined'] - found['streams']}; median {statistics.median(took):.2f} ms"
        f" ({took[0]:.2f} to {took[-1]:.2f}); server grew by {found['grown'] / 1e6:.1f} MB at its peak;"
        f" load {found['load'][0]:.1f}"
    )
    if given.out is not None:
        given.out.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

"""How long an exchange takes over the link, with TLS, when clients say back what they hear.

    python -m bench.link --clients 8 --bytes 19000 [--exchanges 30] [--processes 4]

Clients are processes that speak the link's protocol and nothing else (`bench/echo.py`). An exchange is as long as it
takes until the last answer is there; the first ones do not count.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.processes import ROOT
from fedopt.wire import authority
from fedopt.wire.link import Keys, Listener
from fedopt.wire.roster import Roster

WARM = 5
RUN, LIBRARY = "bench", "0"


def measure(clients: int, nbytes: int, exchanges: int, processes: int) -> dict[str, Any]:
    """Seconds of each exchange, and what the server's memory grew by beyond its clients' first welcome."""
    ca = authority.authority("bench")
    roster = Roster(RUN, LIBRARY, clients)
    listener = Listener(roster, keys=Keys(*authority.server(ca, ["localhost"])))
    port = listener.start()
    with tempfile.TemporaryDirectory() as folder:
        pem = Path(folder) / "ca.pem"
        pem.write_bytes(ca.certificate)
        command = [sys.executable, str(ROOT / "bench" / "echo.py"), f"localhost:{port}", str(pem)]
        workers = [subprocess.Popen(command, stdin=subprocess.PIPE, text=True) for _ in range(min(processes, clients))]
        for i, worker in enumerate(workers):
            assert worker.stdin is not None
            for client in range(i, clients, len(workers)):
                secret = roster.expect(f"node{client}").hex()
                worker.stdin.write(f"{client} node{client} {secret} {RUN} {LIBRARY}\n")
            worker.stdin.close()
        try:
            missing = listener.wait_for(range(clients), 120.0)
            if missing:
                raise RuntimeError(f"clients {missing} did not come")
            message, before = os.urandom(nbytes), _peak()
            seconds = []
            for number in range(WARM + exchanges):
                started = time.perf_counter()
                answers = dict(listener.ask(number, range(clients), lambda row: message, nbytes))
                took = time.perf_counter() - started
                if any(answer != message for answer in answers.values()):
                    raise RuntimeError("an answer is not what was said")
                if number >= WARM:
                    seconds.append(took)
                del answers
        finally:
            listener.close()
            for worker in workers:
                worker.wait(30.0)
    return {"clients": clients, "bytes": nbytes, "seconds": seconds, "grown": _peak() - before}


def _peak() -> int:
    """The most bytes that this process ever held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--clients", type=int, default=8)
    arguments.add_argument("--bytes", type=int, default=19_000)
    arguments.add_argument("--exchanges", type=int, default=30)
    arguments.add_argument("--processes", type=int, default=8, help="the clients are spread over so many")
    given = arguments.parse_args()
    found = measure(given.clients, given.bytes, given.exchanges, given.processes)
    milliseconds = sorted(1e3 * s for s in found["seconds"])
    print(
        f"{found['clients']} clients, {found['bytes']} bytes: median {statistics.median(milliseconds):.2f} ms"
        f" ({milliseconds[0]:.2f} to {milliseconds[-1]:.2f}), server grew by {found['grown'] / 1e6:.1f} MB at its peak"
    )


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Whether a server answers, or a client is at work; for a container's health check.

fedopt-health https://localhost:8000/health /federation/ca.pem
fedopt-health /federation/state/alive
"""

import ssl
import sys
import time
import urllib.request
from pathlib import Path

OLD_S = 30.0


def answers(address: str, authority: str) -> bool:
    """Whether a server answers at this address."""
    try:
        context = ssl.create_default_context(cafile=authority)
        with urllib.request.urlopen(address, timeout=5.0, context=context) as said:
            return bool(said.status == 200)
    except OSError:
        return False


def fresh(mark: str) -> bool:
    """Whether a file was touched a moment ago."""
    try:
        return time.time() - Path(mark).stat().st_mtime < OLD_S
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(not (answers(*sys.argv[1:]) if len(sys.argv) == 3 else fresh(sys.argv[1])))

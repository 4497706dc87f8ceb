"""What an arm answers to the harness: one line of JSON for each line of JSON.

An arm prepares itself, says that it is ready, and then works only when it is asked to: so the arms of a task can take
turns, and a change of the machine's speed meets all of them.

    {"do": "rounds", "count": 5}    -> {"seconds": 1.2, "rounds": 5}
    {"do": "accuracy", "rounds": 50} -> {"accuracy": 0.9, "rounds": 50}    from the first weights
    {"do": "facts"}                 -> {...}    what the arm alone knows
    {"do": "quit"}
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


class Line:
    """Answers go to the real standard output; everything else that is printed goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def say(self, **values: Any) -> None:
        self._out.write(json.dumps(values) + "\n")
        self._out.flush()


def serve(
    line: Line,
    rounds: Callable[[int], None],
    *,
    accuracy: Callable[[int], tuple[float | None, int]],
    facts: Callable[[], dict[str, Any]],
    settle: Callable[[], None] | None = None,
    close: Callable[[], None] = lambda: None,
) -> None:
    """Answer until asked to quit.

    rounds: runs so many rounds. accuracy: from the first weights, after so many rounds: (accuracy, rounds done).
    facts: `serialised_bytes` per round and how it was obtained, and what else the arm knows.
    settle: rounds until the arm has made its choices; for `auto`.
    """
    line.say(ready=time.time())
    try:
        for text in sys.stdin:
            asked = json.loads(text)
            if asked["do"] == "quit":
                break
            if asked["do"] == "rounds":
                started = time.perf_counter()
                rounds(asked["count"])
                line.say(seconds=time.perf_counter() - started, rounds=asked["count"])
            elif asked["do"] == "settle":
                started = time.perf_counter()
                if settle is not None:
                    settle()
                line.say(seconds=time.perf_counter() - started)
            elif asked["do"] == "accuracy":
                found, done = accuracy(asked["rounds"])
                line.say(accuracy=found, rounds=done)
            else:
                line.say(**facts())
    finally:
        close()

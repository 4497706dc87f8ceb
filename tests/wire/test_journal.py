"""Log lines with ids: what the server's and a client's say of the same exchange."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Callable, Iterator

import pytest

from fedopt.wire import journal
from fedopt.wire.journal import JsonLines, Plain

Said = Callable[[], list[str]]
log = logging.getLogger("fedopt.test")


@pytest.fixture
def logged() -> Iterator[Callable[[logging.Formatter], Said]]:
    handlers: list[logging.Handler] = []

    def begin(formatter: logging.Formatter) -> Said:
        file = io.StringIO()
        handlers.append(logging.StreamHandler(file))
        handlers[-1].setFormatter(formatter)
        log.addHandler(handlers[-1])
        log.setLevel(logging.INFO)
        return lambda: file.getvalue().splitlines()

    yield begin
    for handler in handlers:
        log.removeHandler(handler)


def test_lines_have_the_ids_of_what_they_are_about(logged: Callable[[logging.Formatter], Said]) -> None:
    said = logged(JsonLines({"run": "r", "experiment": "e"}))
    plain = logged(Plain({"run": "50%", "client": "3"}))
    log.info("before")
    with journal.exchange(255):
        log.warning("client %d: %s", 7, "no\nanswer \x1b[2J", extra={"client": 7})
        with journal.exchange(1 << 63):
            log.info("within")
        log.info("another", extra={"exchange": 1})
        thread = threading.Thread(target=lambda: log.info("elsewhere"))
        thread.start()
        thread.join()
        try:
            raise ValueError("wrong")
        except ValueError:
            log.exception("failed")
    log.info("after")
    lines = [json.loads(line) for line in said()]
    assert [line["exchange"] for line in lines] == [
        None, "00000000000000ff", "8000000000000000", "0000000000000001", None, "00000000000000ff", None,
    ]  # fmt: skip
    assert all(line["run"] == "r" and line["experiment"] == "e" for line in lines)
    first, warned, *_, failed, _ = lines
    assert first.keys() == {"time", "level", "run", "experiment", "exchange", "client", "logger", "message"}
    assert first["time"].endswith("+00:00") and first["client"] is None and first["logger"] == "fedopt.test"
    assert (
        warned["level"] == "WARNING" and warned["client"] == 7 and warned["message"] == "client 7: no\nanswer \x1b[2J"
    )
    assert "\x1b" not in "".join(said())
    assert failed["exception"].endswith("ValueError: wrong")
    words = plain()
    assert "INFO run=50% client=3 exchange=- fedopt.test: before" in words[0]
    assert "WARNING run=50% client=3 exchange=00000000000000ff fedopt.test: client 7: no" in words[1]

"""Log lines that say which run, exchange and client they are about, with the same ids at the server and at clients.

The id of an exchange is the number that its messages carry. Whoever works on one says so in `exchange`, and every line
that is logged meanwhile has it; a line about another one is given its own: `log.info(..., extra={"exchange": n})`.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime

EXCHANGE: ContextVar[int | None] = ContextVar("exchange", default=None)
"""The exchange that is worked on here."""


@contextlib.contextmanager
def exchange(number: int) -> Iterator[None]:
    """Lines that are logged here are about this exchange."""
    before = EXCHANGE.get()
    EXCHANGE.set(number)
    try:
        yield
    finally:
        EXCHANGE.set(before)


class JsonLines(logging.Formatter):
    """A JSON object for each line, of ASCII characters: time (UTC), level, the ids, logger and message.

    ids: what is the same in every line, `run` and `experiment`.
    """

    def __init__(self, ids: Mapping[str, str]) -> None:
        super().__init__()
        self.ids = dict(ids)

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        found = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            **self.ids,
            "exchange": _exchange(record),
            "client": getattr(record, "client", None),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return json.dumps(found)


class Plain(logging.Formatter):
    """The same as words, for the log of a process that others write to as well.

    ids: what is the same in every line, `run`, `experiment` and `client`.
    """

    def __init__(self, ids: Mapping[str, str]) -> None:
        words = " ".join(f"{name}={value}".replace("%", "%%") for name, value in ids.items())
        super().__init__(f"%(asctime)s %(levelname)s {words} exchange=%(exchange_id)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The line, and a traceback where there is one."""
        record.exchange_id = _exchange(record) or "-"
        return super().format(record)


def _exchange(record: logging.LogRecord) -> str | None:
    """As `fedopt.engine.resident` writes it."""
    number = getattr(record, "exchange", None)
    number = EXCHANGE.get() if number is None else number
    return None if number is None else f"{number:016x}"

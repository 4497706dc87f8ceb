"""Those who do not come in at Flower's port are counted, by what they did."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="needs cryptography: pip install 'fedopt[deploy]'")

from fedopt.wire import authority
from fedopt.wire.superlink import REASONS, Counts, read


@pytest.fixture(scope="module")
def ca() -> authority.Signed:
    return authority.authority("test")


@pytest.fixture
def serving(tmp_path: Path, ca: authority.Signed) -> Iterator[Callable[[int], tuple[int, Counts]]]:
    """`call(days)`: a TLS server with a certificate for so many days, its port and its counts."""
    made: list[socket.socket] = []

    def make(days: int) -> tuple[int, Counts]:
        key, chain = authority.server(ca, ["localhost"], days)
        (tmp_path / "key").write_bytes(key)
        (tmp_path / "chain").write_bytes(chain)
        context, counts = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), Counts(tmp_path / "counts.json")
        context.load_cert_chain(tmp_path / "chain", tmp_path / "key")
        watched = counts.watching(None, lambda: context)
        listening = socket.create_server(("127.0.0.1", 0))
        made.append(listening)

        def serve() -> None:
            while True:
                try:
                    plain, _ = listening.accept()
                except OSError:
                    return
                with contextlib.suppress(OSError), watched.wrap_socket(plain, server_side=True) as one:
                    one.sendall(one.recv(10))

        threading.Thread(target=serve, daemon=True).start()
        return listening.getsockname()[1], counts

    yield make
    for one in made:
        one.shutdown(socket.SHUT_RDWR)
        one.close()


def come(port: int, root: bytes | None) -> str:
    """Say something, with this authority or without TLS; what went wrong."""
    try:
        with socket.create_connection(("127.0.0.1", port), 5.0) as plain:
            if root is None:
                plain.sendall(bytes(100))
                with contextlib.suppress(ConnectionError):
                    plain.recv(10)
                return ""
            context = ssl.create_default_context(cadata=root.decode())
            with context.wrap_socket(plain, server_hostname="localhost") as one:
                one.sendall(b"hello")
                assert one.recv(10) == b"hello"
            return ""
    except ssl.SSLError as error:
        return str(error)


def test_by_what_a_client_says_of_the_certificate(serving: Callable[..., tuple[int, Counts]], ca: authority.Signed,
                                                  tmp_path: Path) -> None:  # fmt: skip
    port, _ = serving(30)
    assert come(port, ca.certificate) == "" and read(tmp_path / "counts.json") == {}, "who comes in is not counted"
    assert "VERIFY_FAILED" in come(port, authority.authority("another").certificate)
    come(port, None)
    assert come(port, ca.certificate) == "", "after those before it"
    assert read(tmp_path / "counts.json") == {"authority": 1, "no_tls": 1}


def test_by_a_certificate_out_of_date_and_on_from_what_was_counted(
    serving: Callable[..., tuple[int, Counts]], ca: authority.Signed, tmp_path: Path
) -> None:
    (tmp_path / "counts.json").write_text('{"expired": 4}')
    port, _ = serving(-1)
    assert "expired" in come(port, ca.certificate)
    come(port, None)  # one after the other: the first is counted by now
    assert read(tmp_path / "counts.json")["expired"] == 5
    assert set(read(tmp_path / "counts.json")) <= set(REASONS)


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("/v1/fleet/activate-node", 412, "unregistered"),
        ("/v1/fleet/register-node", 403, "unregistered"),
        ("/v1/fleet/pull-messages", 401, "unauthenticated"),
        ("/v1/fleet/activate-node", 200, None),
        ("/v1/control/start-run", 401, None),
    ],
)
def test_by_flowers_answer(path: str, status: int, reason: str | None, tmp_path: Path) -> None:
    counts = Counts(tmp_path / "counts.json")
    said = ("1.2.3.4:5", "POST", path, "1.1", status)
    record = logging.LogRecord("uvicorn.access", logging.INFO, "", 0, '%s - "%s %s HTTP/%s" %d', said, None)
    assert counts.requested(record), "the line stays in the log"
    assert read(tmp_path / "counts.json") == ({} if reason is None else {reason: 1})


@pytest.mark.parametrize("text", ["", "[1]", '{"a": "b"}', "{", json.dumps({"a": None})])
def test_a_file_that_is_no_count_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "counts.json").write_text(text)
    assert read(tmp_path / "counts.json") == {}

"""`fedopt watch`: the view of a run in its own process, from its folder and over the monitor, and how it ended."""

from __future__ import annotations

import io
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import fedopt as library
from fedopt.report import live
from fedopt.report.live import LiveView, watch
from fedopt.types import FedoptError
from fedopt.wire import tail
from fedopt.wire.tail import About, Away, Happening, Links, Over, Recorded, State


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, finished."""
    from tests.run.conftest import SMALL

    out = tmp_path_factory.mktemp("watched") / "run"
    library.run({**SMALL, "attack": [{"name": "sign_flip", "clients": [1]}]}, out=out)
    return out


def told(folder: Path) -> list[Happening]:
    return list(tail.follow(folder))


def shown(happenings: list[Happening], place: str = "somewhere", terminal: bool = False) -> tuple[str, Over]:
    """What is written, at once, on a page of 90 columns."""
    console = Console(width=90, file=io.StringIO(), force_terminal=terminal, record=True, _environ={})
    over = watch(happenings, place, console)
    return console.export_text(), over


def test_a_folder_is_watched_to_its_end(done: Path, fedopt: Callable[..., Any]) -> None:
    ran = fedopt("watch", done)
    assert ran.status == 0, ran.err
    assert "experiment: fedavg on digits, 8 clients, 9 rounds" in ran.out
    assert "finished: all rounds done" in ran.out.splitlines()[-1]
    assert "9 of 9" in ran.out and str(done) in ran.out.replace("\n", "")
    assert "\x1b" not in ran.out  # it is no terminal


@pytest.mark.parametrize(
    ("status", "code"), [("finished", 0), ("stopped", 0), ("failed", 1), ("interrupted", 130), ("\x1b[2Jodd", 1)]
)
def test_the_exit_status_says_how_it_ended(
    status: str, code: int, done: Path, tmp_path: Path, fedopt: Callable[..., Any]
) -> None:
    info = json.loads((done / "run.json").read_text()) | {"status": status, "reason": "client 3: \x1b]0;title\x07"}
    (tmp_path / "run.json").write_text(json.dumps(info))
    ran = fedopt("watch", tmp_path)
    assert ran.status == code
    assert "\x1b" not in ran.out and "\x07" not in ran.out and "client 3:" in ran.out


@pytest.mark.slow
def test_a_run_is_watched_while_it_goes_on(
    small: Any, write: Any, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    running = start("run", write(small({"run.rounds": 15})), "-q", "--set", f"run.out={out}")
    while not (out / "run.json").exists():
        assert running.poll() is None
        time.sleep(0.02)
    happenings = []
    for happening in tail.follow(out):
        happenings.append(happening)
        if isinstance(happening, Recorded) and happening.number == 1:
            assert running.poll() is None
    assert running.wait(30.0) == 0
    assert isinstance(happenings[0], About) and isinstance(happenings[-1], Over)
    lines = [h.text for h in happenings if isinstance(h, Recorded)]
    assert b"".join(lines) == (out / "metrics.jsonl").read_bytes() and len(lines) == 15
    running.communicate()


def test_the_view_is_that_of_the_run_itself(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes at the end sees the same panel as who watched from the start."""
    lines = [json.loads(text) for text in (done / "metrics.jsonl").read_text().splitlines()]
    now = [0.0]
    console = Console(width=90, file=io.StringIO(), force_terminal=True, _environ={})
    title = "experiment: fedavg on digits, 8 clients"
    with LiveView(9, title, console, lambda: now[0], [1]) as alone:
        for line in lines:
            now[0] = line["elapsed"]
            alone.update(line)
        wanted = panel(alone)
    views = []
    monkeypatch.setattr(live, "LiveView", lambda *given: views.append(LiveView(*given)) or views[-1])
    watch(told(done), "somewhere", console, clock=lambda: 5.0)
    assert panel(views[-1]) == wanted and "updates/s" in wanted and "attackers" in wanted
    assert len(views) == 1


def panel(view: LiveView) -> str:
    console = Console(width=90, file=io.StringIO(), force_terminal=True, record=True, _environ={})
    console.print(view.render())
    return console.export_text()


def line(number: int, **more: Any) -> Recorded:
    given = {"exchange": number, "round": number + 1, "clients": [0, 1], "bytes_up": 1000, "bytes_down": 10,
             "accuracy": 0.1 * number, "elapsed": 10.0 * number, **more}  # fmt: skip
    return Recorded(number, json.dumps(given).encode() + b"\n", more=False)


FACTS = {"name": "toy", "strategy": "fedavg", "rounds": 6, "data": "digits", "clients": 4}


def test_a_run_that_goes_back_to_a_checkpoint_is_counted_once() -> None:
    away = [Away("Socket closed")] * 3
    text, over = shown([
        About({}, 0), Links({"never_came": State(4, [0, 1, 2, 3])}), About(FACTS, 0), *map(line, range(4)),
        *away, About(FACTS, 0), *map(line, range(5)), Over("finished", "done"),
    ])  # fmt: skip
    assert over == Over("finished", "done")
    assert "somewhere: waiting for the run to begin" in text.splitlines()[0]
    assert text.count("toy: fedavg on digits, 4 clients, 6 rounds") == 2  # it is begun anew
    assert text.count("the server is away, and looked for: Socket closed") == 1
    assert text.count("the server is back") == 1
    assert "rounds    5 of 6" in text and "10 updates" in text and "5.00 kB up" in text


def test_what_clients_do_is_shown() -> None:
    there = {"idle": State(3, [0, 1, 2]), "working": State(0, []), "away": State(0, [])}
    busy = {"idle": State(2, [0, 1]), "working": State(1, [2]), "away": State(0, [])}
    some = {"idle": State(2, [0, 1]), "working": State(0, []), "away": State(30, list(range(2, 5)))}
    text, _ = shown([About(FACTS, 0), Links(busy), Links(there), Links(busy), Links(some), Over("finished", "")])
    # who works changes all the time, and who is there is news
    assert [text for text in text.splitlines() if text.startswith("clients:")] == [
        "clients: 2 idle, 30 away (2, 3, 4, ...)"
    ]

    def happenings() -> Iterator[Happening]:
        yield About(FACTS, 0)
        yield Links(some)
        yield Away("gone")
        time.sleep(0.6)
        yield Over("lost", "it is gone")

    file = io.StringIO()
    over = watch(happenings(), "x", Console(width=90, file=file, force_terminal=True, _environ={}))
    assert over.status == "lost"
    assert "2 idle, 30 away (2, 3, 4, ...)" in file.getvalue() and "away, and looked for: gone" in file.getvalue()


def test_text_from_outside_moves_no_cursor() -> None:
    evil = "\x1b[2J\x1b]0;x\x07\r\n"
    facts = FACTS | {"name": evil, "strategy": [evil], "folder": evil, "attackers": "1"}
    text, _ = shown([About(facts, 0), Links({evil: State(1, [0])}), line(0, info={"kept_model": evil}, program=evil),
                     Away(evil), Over(evil, evil)])  # fmt: skip
    assert not any(character in text for character in "\x1b\x07\r")


def test_a_line_that_is_none_is_said_so() -> None:
    for wrong in (b"{", b"[]", b'{"exchange": "x", "round": 1}', b"[" * 100_000):
        with pytest.raises(FedoptError, match="a line of a run's record is needed"):
            shown([About(FACTS, 0), Recorded(0, wrong, False)])


def test_a_place_that_is_none(tmp_path: Path, fedopt: Callable[..., Any]) -> None:
    ran = fedopt("watch", tmp_path)
    assert ran.status == 2 and "no run.json" in ran.err
    ran = fedopt("watch", "nowhere")
    assert ran.status == 2 and "a run folder or host:port" in ran.err


def test_over_the_monitor(small: Any, tmp_path: Path, fedopt: Callable[..., Any]) -> None:
    pytest.importorskip("grpc", reason="needs gRPC: pip install 'fedopt[deploy]'")
    pytest.importorskip("cryptography", reason="needs cryptography: pip install 'fedopt[deploy]'")
    from fedopt.wire import authority
    from fedopt.wire.address import Address
    from fedopt.wire.link import Keys
    from fedopt.wire.monitor import Monitor

    ca = authority.authority("test")
    keys = Keys(*authority.server(ca, ["localhost"]))
    (tmp_path / "ca.pem").write_bytes(ca.certificate)
    (tmp_path / "token").write_text("a token of 20 bytes!".replace(" ", "-"))
    (tmp_path / "other").write_text("another-token-of-20-bytes")
    out = tmp_path / "run"
    server = Monitor(out, Address("127.0.0.1", 0), keys, "a-token-of-20-bytes!", lambda: {"idle": [0]})
    with server:
        words = ["watch", f"localhost:{server.port}", "--authority", tmp_path / "ca.pem", "--token-file"]
        ran = fedopt(*words, tmp_path / "other")
        assert ran.status == 2 and "refuses: a token is needed" in ran.err
        ran = fedopt(*words, tmp_path / "absent")
        assert ran.status == 2 and "--token-file" in ran.err
        ran = fedopt(*words[:2], "--authority", tmp_path / "absent")
        assert ran.status == 2 and "--authority" in ran.err

        def work() -> None:
            time.sleep(0.5)
            library.run(small({"run.rounds": 4}), out=out)
            server.close()

        working = threading.Thread(target=work)
        working.start()
        ran = fedopt(*words, tmp_path / "token")
        working.join()
    assert ran.status == 0, ran.err
    assert f"localhost:{server.port}: waiting for the run to begin" in ran.out
    assert "experiment: fedavg on digits, 8 clients, 4 rounds" in ran.out and "rounds    4 of 4" in ran.out
    assert ran.out.splitlines()[-1] == "finished: all rounds done"
    ran = fedopt(*words, tmp_path / "token", "--reconnect", 0.3)
    assert ran.status == 3 and "lost: the server at" in ran.out

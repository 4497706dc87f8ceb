"""The pages in a real browser, without a network: pictures are drawn, nothing fails, nothing is fetched.

Speaks Chromium's DevTools protocol over its websocket.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedopt.report import compare, html, page, sweep_page
from fedopt.report import record as run

websocket = pytest.importorskip("websocket", reason="needs the package websocket-client")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 60.0


class Page:
    """What happened while a page was open."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser = browser
        self.session = session
        self.requests: list[str] = []
        self.errors: list[str] = []

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.browser.call(
            "Runtime.evaluate", {"expression": script, "returnByValue": True, "awaitPromise": True}, self
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, script: str) -> Any:
        """Wait until the expression is true."""
        end = time.monotonic() + PATIENCE
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}; errors: {self.errors}"
            time.sleep(0.05)
        return value

    def note(self, method: str, about: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(about["exceptionDetails"]))
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.errors.append(about["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(about["args"]))

    @property
    def fetched(self) -> list[str]:
        """Requests but for the file itself and what stands in it."""
        return [url for url in self.requests[1:] if not url.startswith(("data:", "blob:"))]


class Browser:
    """A connection to the browser."""

    def __init__(self, address: str) -> None:
        self.socket = websocket.create_connection(address, timeout=PATIENCE, suppress_origin=True)
        self.number = 0
        self.pages: dict[str, Page] = {}
        self.loaded: set[str] = set()

    def call(self, method: str, params: dict[str, Any], to: Page | None = None) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        self.socket.send(json.dumps(message | ({"sessionId": to.session} if to else {})))
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result

    def receive(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.socket.recv())
        session, method = answer.get("sessionId", ""), answer.get("method", "")
        if session in self.pages:
            self.pages[session].note(method, answer.get("params", {}))
        if method == "Page.loadEventFired":
            self.loaded.add(session)
        return answer

    def open(self, file: Path, width: int = 1300, dark: bool = False) -> Page:
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        opened = self.pages[session] = Page(self, session)
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable", {}, opened)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", size, opened)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", {"features": [scheme]}, opened)
        self.call("Page.navigate", {"url": file.as_uri()}, opened)
        while session not in self.loaded:
            self.receive()
        return opened


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"needs a Chromium; none of {', '.join(BROWSERS)} is on the PATH")
    profile = Path(tempfile.mkdtemp(prefix="report-browser-"))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={profile}",
        "--remote-debugging-port=0",
        "about:blank",
    ]
    process = subprocess.Popen(
        [program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        port = profile / "DevToolsActivePort"
        end = time.monotonic() + PATIENCE
        while not port.is_file() or len(port.read_text().split()) < 2:
            if process.poll() is not None or time.monotonic() > end:
                pytest.skip(f"{program} does not start here (exit status {process.poll()})")
            time.sleep(0.05)
        number, path = port.read_text().split()
        connection = Browser(f"ws://127.0.0.1:{number}{path}")
        try:
            yield connection
        finally:
            connection.socket.close()
    finally:
        # its own process group: the browser and its renderers, and nobody else
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(profile, ignore_errors=True)


def titles(opened: Page) -> dict[str, str]:
    """Titles of the horizontal axes by the picture's id."""
    script = """Object.fromEntries([...document.querySelectorAll('.js-plotly-plot')].map(
        (node) => [node.id, (node.querySelector('.xtitle') || {}).textContent || '']))"""
    found: dict[str, str] = opened.run(script)
    return found


def column(opened: Page, table: str, index: int) -> list[str]:
    """The texts of a column."""
    cells = f"[...document.querySelectorAll('#{table} tbody tr')].map((row) => row.cells[{index}].textContent)"
    found: list[str] = opened.run(cells)
    return found


def test_the_harness_sees_errors_and_requests(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "bad.html"
    file.write_text('<img src="http://example.invalid/a.png"><script>setTimeout(() => { throw 3 })</script>')
    opened = browser.open(file)
    opened.until("true")
    time.sleep(0.2)
    opened.run("0")
    assert opened.fetched == ["http://example.invalid/a.png"]
    assert any("Uncaught" in error for error in opened.errors)


def test_the_report_is_drawn(browser: Browser, fake_run: Callable[..., Path]) -> None:
    opened = browser.open(html.write(fake_run()))
    pictures = {"accuracy", "loss", "recall", "info", "phases", "traffic", "partition", "participation"}
    assert set(titles(opened)) == pictures
    for name in pictures:
        assert opened.run(f"document.querySelectorAll('#{name} .main-svg').length") >= 1
    # four lines and the two edges of a band; 4 classes of 30 bars and the attackers' crosses
    assert opened.run("document.querySelectorAll('#accuracy .scatterlayer .trace').length") == 6
    assert opened.run("document.querySelectorAll('#partition .bars .point').length") == 120
    assert opened.run("document.querySelectorAll('#partition .scatterlayer path.point').length") == 2
    assert opened.run("document.querySelectorAll('#participation .hm image').length") == 1
    assert len(column(opened, "clients", 0)) == 30
    assert opened.errors == []
    assert opened.fetched == []


def test_the_horizontal_axis_can_be_chosen(browser: Browser, fake_run: Callable[..., Path]) -> None:
    folder = fake_run()
    opened = browser.open(html.write(folder))
    assert titles(opened)["accuracy"] == "round"
    totals = run.totals(run.read(folder))
    click = "[...document.querySelectorAll('#axis button')].find((b) => b.textContent === '{}').click()"
    for button, title, last in (
        ("Bytes", "bytes sent up and down", totals.bytes_up + totals.bytes_down),
        ("Seconds", "seconds", totals.seconds),
        ("Client updates", "client updates", totals.updates),
        ("Rounds", "round", 40),
    ):
        opened.run(click.format(button))
        opened.until(f"document.querySelector('#accuracy .xtitle').textContent === '{title}'")
        found = titles(opened)
        assert {found[name] for name in ("accuracy", "loss", "recall", "info")} == {title}
        assert found["traffic"] == "round"
        for name in ("accuracy", "loss", "recall", "info"):
            end = opened.run(f"document.getElementById('{name}').data.at(-1).x.at(-1)")
            assert end == pytest.approx(last, rel=1e-5)
        assert opened.run("document.querySelectorAll('#axis [aria-pressed=true]').length") == 1
    opened.run("document.getElementById('log').click()")
    opened.until("document.getElementById('loss').layout.yaxis.type === 'log'")
    assert opened.run("document.getElementById('accuracy').layout.yaxis.type") != "log"
    select = "const s = document.getElementById('info-choice'); s.value = 1; s.dispatchEvent(new Event('change'));"
    opened.run(f"(() => {{ {select} }})()")
    opened.until("document.getElementById('info').data[0].name === 'norm'")
    assert opened.errors == []


def test_tables_are_sorted_and_filtered(browser: Browser, fake_run: Callable[..., Path]) -> None:
    opened = browser.open(html.write(fake_run(clients=120, rounds=20)))
    assert len(column(opened, "clients", 0)) == 50
    opened.run("document.querySelector('#clients .more').click()")
    assert column(opened, "clients", 0) == [f"client {i}" for i in range(120)]
    press = "document.querySelectorAll('#clients th button')[{}].click()"
    opened.run(press.format(1))
    sizes = [int(text.replace("\u202f", "")) for text in column(opened, "clients", 1)]
    assert sizes == sorted(sizes, reverse=True)
    opened.run(press.format(1))
    sizes = [int(text.replace("\u202f", "")) for text in column(opened, "clients", 1)]
    assert sizes == sorted(sizes)
    # clients that never answered have no loss and come last, both ways
    for _ in range(2):
        opened.run(press.format(6))
        losses = column(opened, "clients", 6)
        assert "–" in losses
        assert losses.index("–") == len(losses) - losses.count("–")
    opened.run(press.format(0))
    assert column(opened, "clients", 0) == [f"client {i}" for i in range(120)]
    typing = (
        "const f = document.querySelector('#clients input'); f.value = 'ATTACK'; f.dispatchEvent(new Event('input'));"
    )
    opened.run(f"(() => {{ {typing} }})()")
    assert column(opened, "clients", 0) == ["client 1", "client 4"]
    assert opened.errors == []


def test_text_from_a_run_does_not_run(browser: Browser, fake_run: Callable[..., Path]) -> None:
    evil = "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'>"
    folder = fake_run(name=evil, client_names={1: evil}, classes=("N", evil), reason=evil, status="failed")
    # also as the name of a number
    lines = [json.loads(raw) for raw in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["info"][evil] = 1.0
        line["rejected"] = [{"client": 1, "reason": evil}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    opened = browser.open(html.write(folder))
    # what is shown on hovering is text as well
    opened.run("Plotly.Fx.hover('partition', [{ curveNumber: 1, pointNumber: 1 }])")
    opened.run("Plotly.Fx.hover('recall', [{ curveNumber: 0, pointNumber: 5 }])")
    time.sleep(0.3)
    assert opened.run("window.pwned === undefined && document.images.length === 0")
    assert evil in column(opened, "clients", 0)
    assert evil in column(opened, "rejections", 1)
    assert opened.run("document.querySelector('h1').textContent") == evil
    assert "<script>window.pwned" in opened.run("document.getElementById('recall').textContent")
    assert opened.errors == []
    assert opened.fetched == []


def test_the_policy_stops_a_script_that_was_let_in(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    evil = "<script>window.pwned = 1</script><img src='http://example.invalid/x' onerror='window.pwned = 2'>"
    file.write_text(page.document("t", evil, {}, []), encoding="utf-8")
    opened = browser.open(file)
    time.sleep(0.3)
    assert opened.run("window.pwned === undefined")
    assert opened.run("typeof Plotly") == "object"
    assert any("Content Security Policy" in error for error in opened.errors)


def test_the_page_fits_a_telephone_and_the_dark(browser: Browser, fake_run: Callable[..., Path]) -> None:
    opened = browser.open(html.write(fake_run()), width=390, dark=True)
    assert opened.run("document.documentElement.scrollWidth") <= 390
    dark = opened.run("getComputedStyle(document.body).backgroundColor")
    line = opened.run("document.getElementById('accuracy').data.at(-1).line.color")
    light = {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
    browser.call("Emulation.setEmulatedMedia", light, opened)
    opened.until(f"getComputedStyle(document.body).backgroundColor !== '{dark}'")
    opened.until(f"document.getElementById('accuracy').data.at(-1).line.color !== '{line}'")
    assert opened.errors == []


def test_a_large_federation_is_drawn(browser: Browser, fake_run: Callable[..., Path]) -> None:
    classes = tuple(f"class {i}" for i in range(40))
    opened = browser.open(html.write(fake_run(clients=3000, rounds=50, classes=classes)))
    drawn = {"accuracy", "loss", "recalls", "info", "phases", "traffic", "partition", "sizes", "participation"}
    assert set(titles(opened)) == drawn
    for name in ("recalls", "partition"):
        assert opened.run(f"document.querySelectorAll('#{name} .hm image').length") == 1
    for name in ("sizes", "participation"):
        assert opened.run(f"document.querySelectorAll('#{name} .bars .point').length") > 2
        # the bars together are all clients, whatever the width of a bar
        assert opened.run(f"document.getElementById('{name}').calcdata[0].reduce((sum, bar) => sum + bar.s, 0)") == 3000
    assert opened.errors == []
    assert opened.fetched == []


def hovered(opened: Page, picture: str, x: float, y: float) -> str:
    """What is shown over a place in a picture."""
    opened.run(f"Plotly.Fx.unhover('{picture}')")
    opened.run(f"Plotly.Fx.hover('{picture}', {{ xval: {x}, yval: {y} }})")
    return str(opened.until(f"document.querySelector('#{picture} .hoverlayer').textContent"))


@pytest.mark.parametrize(("width", "dark"), [(1300, False), (390, True)])
def test_trust_is_drawn(browser: Browser, trusting_run: Callable[..., Path], width: int, dark: bool) -> None:
    reason = "<b>none</b> of 10 updates lowers the trial loss of the samples that the server holds"
    folder = trusting_run(client_names={1: "<i>first</i>"}, trust={"kept": {3: reason, 17: reason}})
    opened = browser.open(html.write(folder), width=width, dark=dark)
    assert {"trust", "weight", "backdoor"} <= set(titles(opened))
    assert opened.run("document.documentElement.scrollWidth") <= width
    # the label of an attacker has the colour of a warning, and all labels stand inside of the picture
    labels = opened.run("[...document.querySelectorAll('#trust .ytick text')].map((t) => t.textContent)")
    assert labels[:2] == ["✕ <i>first</i>" if width > 600 else "✕ <i>first<…", "✕ client 4"]
    assert labels[2].startswith("client ") and len(labels) == 30
    warn = opened.run("css('--warn')")
    assert opened.run("document.querySelector('#trust .ytick tspan').style.fill") == opened.run(
        f"(() => {{ const s = document.createElement('i').style; s.fill = '{warn}'; return s.fill; }})()"
    )
    box = "document.getElementById('trust').getBoundingClientRect().left"
    left = "Math.min(...[...document.querySelectorAll('#trust .ytick')].map((t) => t.getBoundingClientRect().left))"
    assert opened.run(left) >= opened.run(box)
    legend = "[...document.querySelectorAll('#{} .legendtext')].map((t) => t.textContent)"
    assert opened.run(legend.format("trust")) == ["model kept", "attacker"]
    assert opened.run(legend.format("weight")) == ["their share of the answers", "weight on attackers", "model kept"]
    assert opened.run(legend.format("backdoor")) == ["badnets"]
    assert opened.run("document.querySelectorAll('#trust .scatterlayer path.point').length") == 2
    row = opened.run("document.getElementById('trust').data[0].z[0].findIndex((v) => v !== null)")
    said = hovered(opened, "trust", row + 1, 0)
    assert "<i>first</i>" in said and "attacker: badnets" in said and f"round {row + 1}:" in said
    assert "<b>none</b> of 10" in hovered(opened, "trust", 3, -1.1)
    # no weight is grey, and a weight however small is not
    scale = opened.run("document.getElementById('trust').data[0].colorscale")
    assert scale[0] == [0, opened.run("css('--none')")]
    assert len({colour for _, colour in scale}) == len(scale) and scale[1][0] < 0.001
    opened.run("[...document.querySelectorAll('#axis button')][1].click()")
    opened.until("document.querySelector('#backdoor .xtitle').textContent === 'bytes sent up and down'")
    assert opened.errors == []
    assert opened.fetched == []


def test_trust_in_many_clients_is_drawn(browser: Browser, trusting_run: Callable[..., Path]) -> None:
    trust = {"attackers": tuple(range(40)), "kept": {3: "why"}}
    opened = browser.open(html.write(trusting_run(clients=200, rounds=30, asked=60, trust=trust)))
    assert {"trusts", "weight"} <= set(titles(opened))
    # two means, each with the two edges of its band, and the marks
    assert opened.run("document.querySelectorAll('#trusts .scatterlayer .trace').length") == 7
    assert opened.errors == []


@pytest.mark.parametrize("rounds", [0, 1])
def test_a_run_that_has_only_begun_is_drawn(browser: Browser, fake_run: Callable[..., Path], rounds: int) -> None:
    opened = browser.open(html.write(fake_run(rounds=rounds, status="running", clients=3)))
    assert ("accuracy" in titles(opened)) == bool(rounds)
    assert opened.errors == []


def test_the_comparison_is_drawn(browser: Browser, fake_run: Callable[..., Path], tmp_path: Path) -> None:
    paths = [
        fake_run("a", seed=1),
        fake_run("b", seed=2),
        fake_run("c", rule="mean", name="<b>mean</b>", level=0.5),
        fake_run("d", rule="median", name="median", rounds=20),
    ]
    path, _ = compare.compare(paths, tmp_path / "compare.html")
    opened = browser.open(path)
    # three means, and the two edges of one band
    assert opened.run("document.querySelectorAll('#curves .scatterlayer .trace').length") == 5
    assert opened.run("[...document.querySelectorAll('#curves .legendtext')].map((t) => t.textContent)") == [
        "krum against IPM (2 seeds)",
        "<b>mean</b>",
        "median",
    ]
    assert column(opened, "runs", 0) == ["krum against IPM (2 seeds)", "<b>mean</b>", "median"]
    assert column(opened, "runs", 7) == ["krum", "mean", "median"]
    opened.run("[...document.querySelectorAll('#axis button')][1].click()")
    opened.until("document.querySelector('#curves .xtitle').textContent === 'bytes sent up and down'")
    select = "const s = document.getElementById('metric'); s.value = 'loss'; s.dispatchEvent(new Event('change'));"
    opened.run(f"(() => {{ {select} }})()")
    opened.until("document.getElementById('curves').data.at(-1).y[0] > 1")
    assert opened.errors == []
    assert opened.fetched == []


@pytest.mark.parametrize("dark", [False, True])
def test_the_sweep_is_drawn(browser: Browser, tmp_path: Path, dark: bool) -> None:
    evil = "<b>krum</b>"
    names = {"rule": ["mean", evil], "attack": ["none", "ipm", "alie"], "split": ["iid", "dirichlet"]}
    cells = [
        {
            "settings": {"rule": rule, "attack": attack, "split": split},
            "seed": 1,
            "key": f"{rule}{attack}{split}",
            "clean": attack == "none",
            "planned": 5,
            "state": "refused" if (refused := rule == evil and attack == "alie") else "finished",
            "message": evil if refused else "",
            "value": None if refused else 0.9 - 0.1 * i - 0.05 * j,
            "rounds": 5,
            "seconds": 2.0,
            "folder": f"cells/{i}{j}",
            "report": not refused,
            "versions": "fedopt 0.1.0",
        }
        for i, rule in enumerate(names["rule"])
        for j, attack in enumerate(names["attack"])
        for split in names["split"]
    ]
    facts = {"name": evil, "metric": "accuracy", "at": "last", "rows": "rule", "columns": "attack", "seeds": [1]}
    (tmp_path / "sweep.json").write_text(json.dumps({**facts, "axes": names, "cells": cells}))
    opened = browser.open(sweep_page.write(tmp_path), width=390 if dark else 1300, dark=dark)
    assert set(titles(opened)) == {"panel-0", "panel-1"}
    for panel in ("panel-0", "panel-1"):
        # without attack, with, and the worst: three blocks of two rows
        assert opened.run(f"document.querySelectorAll('#{panel} .hm image').length") == 3
        assert opened.run(f"document.querySelectorAll('#{panel} .xaxislayer-above .xtick').length") == 4
        words = opened.run(f"[...document.querySelectorAll('#{panel} .scatterlayer text')].map((t) => t.textContent)")
        expected = ["90.00", "80.00", "85.00", "80.00", "75.00", "refused", "80.00alie", "refusedalie"]
        assert words == expected, "the columns without attack, those with, the worst"
        colours = f"[...document.querySelectorAll('#{panel} .scatterlayer text')].map((t) => t.style.fill)"
        assert len(set(opened.run(colours))) == 3, "on a light ground, on a dark one, and a warning"
    assert column(opened, "ranks", 0) == ["mean", evil] and column(opened, "ranks", 1) == ["1.00", "2.00"]
    assert column(opened, "worst", 1) == ["alie 80.00", "alie refused"]
    assert column(opened, "troubles", 2) == [evil, evil]
    links = opened.run("[...document.querySelectorAll('#cells a')].map((a) => a.getAttribute('href'))")
    assert len(links) == 10 and links[0] == "cells/00/report.html"
    assert opened.run("document.querySelector('h1').textContent") == evil
    assert opened.run("document.documentElement.scrollWidth") <= (390 if dark else 1300)
    opened.run("Plotly.Fx.hover('panel-0', [{ curveNumber: 1, pointNumber: [1, 0] }])")
    assert opened.run("document.querySelectorAll('main b').length === document.querySelectorAll('.figure b').length")
    assert opened.errors == []
    assert opened.fetched == []


def test_what_cells_cost_is_drawn(browser: Browser, tmp_path: Path) -> None:
    """On a logarithmic axis where costs differ much, with names that lean towards the middle."""
    costs = {"few": (30, 1e5), "some": (60, 4e5), "many": (120, 2e6)}
    cells = [
        {
            "settings": {"who": who},
            "seed": seed,
            "key": f"{who}{seed}",
            "clean": True,
            "planned": 5,
            "state": "finished",
            "message": "",
            "value": 0.5 + 0.1 * i + 0.01 * seed,
            "rounds": 5,
            "seconds": 2.0,
            "updates": updates,
            "bytes_up": sent,
            "folder": f"cells/{who}{seed}",
            "report": False,
            "versions": "fedopt 0.1.0",
        }
        for i, (who, (updates, sent)) in enumerate(costs.items())
        for seed in (1, 2)
    ]
    facts = {"name": "costs", "metric": "accuracy", "at": "last", "rows": "who", "columns": None, "seeds": [1, 2]}
    (tmp_path / "sweep.json").write_text(json.dumps({**facts, "axes": {"who": list(costs)}, "cells": cells}))
    opened = browser.open(sweep_page.write(tmp_path), width=1300)
    for name, kind, leans in (("updates", "linear", "right right left"), ("bytes", "log", "right right left")):
        picture = f"document.getElementById('cost-0-{name}')"
        assert opened.run(f"{picture}._fullLayout.xaxis.type") == kind
        assert opened.run(f"{picture}.data[0].textposition.join(' ').replaceAll('middle ', '')") == leans
        words = opened.run(f"[...{picture}.querySelectorAll('.scatterlayer text')].map((t) => t.textContent)")
        assert words == list(costs)
    ticks = opened.run("[...document.querySelectorAll('#cost-0-bytes .xtick')].map((t) => t.textContent)")
    assert ticks == ["100k", "200k", "500k", "1M", "2M"]
    assert column(opened, "cost", 0) == list(costs)
    assert opened.errors == []

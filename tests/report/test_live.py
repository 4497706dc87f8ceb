"""The terminal view."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedopt.report import record as run
from fedopt.report.live import LiveView, sparkline, summary


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def line(r: int, **more: Any) -> dict[str, Any]:
    return {
        "exchange": r - 1,
        "round": r,
        "asked": 10,
        "answered": 9,
        "clients": list(range(9)),
        "rejected": [{"client": 9, "reason": "NaN"}],
        "train_loss": 1.0,
        "bytes_up": 900_000,
        "bytes_down": 1_000_000,
        **more,
    }


def shown(view: LiveView, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=True)
    view.console = console
    console.print(view.render())
    return console.export_text()


def test_the_sparkline_goes_from_the_lowest_to_the_highest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([7, 0], 8) == "█▁"
    assert sparkline([3, 3, 3], 8) == "▄▄▄"
    assert sparkline([0, 0, 0, 0, 8, 8, 8, 8], 2) == "▁█"
    assert sparkline([], 8) == ""
    assert sparkline([1.0], 0) == ""
    assert len(sparkline(list(range(1000)), 50)) == 50


def test_the_panel_says_how_far_and_how_good() -> None:
    clock = Clock()
    view = LiveView(100, "fedavg on digits", Console(file=io.StringIO(), force_terminal=True), clock)
    with view:
        for r in range(1, 21):
            clock.now += 0.5
            view.update(line(r, accuracy=0.5 + 0.02 * r if r < 20 else 0.7, loss=2.0 / r))
    text = shown(view)
    assert "fedavg on digits" in text
    assert "round 20 of 100" in text
    assert "10.0 s, 40.0 s left" in text
    assert "accuracy" in text
    assert "70.00 %  best 88.00 % in round 19" in text
    assert "10 asked, 9 answered, 1 rejected" in text
    assert "180 updates, 20 rejected, 18 updates/s" in text
    assert "18.0 MB up, 20.0 MB down" in text
    assert "0.1" in text
    assert "█" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("width", [30, 60, 80, 200])
def test_the_panel_fits_every_width(width: int) -> None:
    view = LiveView(10_000, "a very long title " * 10, Console(file=io.StringIO(), force_terminal=True))
    for r in range(1, 500):
        view.update(line(r, accuracy=r / 500))
    assert max(map(len, shown(view, width).splitlines())) <= width


def test_a_resumed_run_is_timed_from_where_it_went_on() -> None:
    clock = Clock()
    view = LiveView(100, "t", Console(file=io.StringIO(), force_terminal=True), clock)
    with view:
        for r in range(81, 91):
            clock.now += 1.0
            view.update(line(r))
    assert view.time_left() == pytest.approx(10.0)
    assert view.rate == pytest.approx(9.0)


def test_a_terminal_gets_the_view_and_is_left_clean() -> None:
    out = io.StringIO()
    with LiveView(3, "title", Console(file=out, force_terminal=True, width=80)) as view:
        view.update(line(1, accuracy=0.5))
    assert "title" in out.getvalue()
    assert view._live is None


def test_without_a_terminal_evaluations_are_lines_two_seconds_apart() -> None:
    clock, out = Clock(), io.StringIO()
    with LiveView(100, "fedavg [digits]", Console(file=out, width=60), clock) as view:
        for r in range(1, 98):
            clock.now += 0.125
            view.update(line(r, **({"accuracy": r / 100, "loss": 1.0} if r % 5 == 0 else {})))
    lines = out.getvalue().splitlines()
    assert lines[0] == "fedavg [digits], 100 rounds"
    # at 0.125 s (the first loss), 2.5, 5, 7.5 and 10 s, and what was left at the end
    assert [text.split(",")[0] for text in lines[1:]] == [f"round {r}/100" for r in (1, 20, 40, 60, 80, 95)]
    assert "accuracy 20.00 %, loss 1" in lines[2]
    assert "20 rejected" in lines[2]
    assert "18.0 MB up" in lines[2]
    assert "72 updates/s" in lines[2]
    assert lines[2].endswith("10.0 s left")
    assert "\x1b" not in out.getvalue()


def test_an_error_in_the_run_passes_through() -> None:
    for terminal in (True, False):
        view = LiveView(3, "t", Console(file=io.StringIO(), force_terminal=terminal))
        with pytest.raises(KeyError, match="inside"), view:
            raise KeyError("inside")
        assert view._live is None


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"round": None},
        {"round": "three", "accuracy": "high", "clients": 7, "rejected": None},
        {"round": float("nan"), "accuracy": float("nan"), "loss": float("inf")},
        {"round": 2, "accuracy": None, "bytes_up": [], "asked": {}, "client_eval": 3},
        {"round": -5, "asked": -1},
        {"round": 2, "info": {"trust": {"0": float("nan"), "x": 1, "3": "high", "1": 1e308}, "kept_model": [1]}},
        {"round": 2, "info": {"trust": [0.5], "kept_model": True, "epsilon": "much"}, "backdoor": {"a": None, "b": ""}},
        {"round": 2, "info": {"trust": {}, "kept_model": "[red]" * 500}, "clients": [[], {}, None, True, "0"]},
        {"round": 2, "info": 7, "backdoor": [0.5], "clients": [10**400, float("nan")]},
        {"round": 10**9, "accuracy": 1e300, "loss": -1e300, "bytes_up": 1e300},
        None,
        [1],
        "line",
    ],
)
@pytest.mark.parametrize("terminal", [True, False])
def test_odd_lines_do_no_harm(odd: Any, terminal: bool) -> None:
    view = LiveView(5, "t", Console(file=io.StringIO(), force_terminal=terminal, width=80), attackers=[0, 1])
    with view:
        view.update(line(1, accuracy=0.5))
        view.update(odd)
        view.update(line(2, accuracy=0.6))
        shown(view)


def test_attackers_and_what_weight_they_have() -> None:
    view = LiveView(9, "t", Console(file=io.StringIO(), force_terminal=True), attackers=[2, 5, 40])
    view.update(line(1))
    assert "2 of 9 answers" in shown(view)
    assert "weight" not in shown(view)
    trust = {str(c): 0.02 if c in (2, 5) else 0.96 / 7 for c in range(9)}
    view.update(line(2, info={"trust": trust, "epsilon": 1.25}, backdoor={"badnets": 0.125}))
    text = shown(view)
    assert "2 of 9 answers, 4 % of the weight" in text
    assert "badnets 12.50 %" in text
    assert "ε = 1.25" in text
    assert "model kept" not in text
    # an exchange that tells no weights, as the first one of two in a round
    view.update(line(3))
    assert "4 % of the weight" in shown(view)
    view.update(line(3, info={"kept_model": "nobody is [bold]trusted[/bold]", "trust": dict.fromkeys(trust, 0.0)}))
    text = shown(view)
    assert "in round 3: nobody is [bold]trusted[/bold]" in text
    assert "2 of 9 answers, 0 % of the weight" in text
    view.update(line(4, info={"kept_model": "again"}))
    view.update(line(4, info={"kept_model": "again"}))
    assert "in 2 rounds, last in round 4: again" in shown(view)


def test_attackers_that_nobody_knows_of_are_not_shown() -> None:
    view = LiveView(9, "t", Console(file=io.StringIO(), force_terminal=True))
    view.update(line(1, info={"trust": {"0": 0.5, "1": 0.5}}))
    assert "attackers" not in shown(view)
    view = LiveView(9, "t", Console(file=io.StringIO(), force_terminal=True), attackers=[40])
    view.update(line(1, info={"trust": {"0": 0.5, "1": 0.5}}))
    assert "0 of 9 answers, 0 % of the weight" in shown(view)


def test_plain_lines_tell_of_attackers_and_kept_rounds() -> None:
    clock, out = Clock(), io.StringIO()
    with LiveView(3, "t", Console(file=out, width=60), clock, attackers=[0]) as view:
        view.update(line(1, accuracy=0.5, info={"trust": {"0": 0.125, "1": 0.5}, "kept_model": "why"}))
    assert "12.5 % of the weight on attackers, model kept in 1 round" in out.getvalue()


def test_nothing_planned_and_nothing_measured() -> None:
    view = LiveView(0, "t", Console(file=io.StringIO(), force_terminal=True))
    assert "round 0" in shown(view)
    view.update({"round": 3, "exchange": 3})
    assert "round 3" in shown(view)
    assert view.time_left() is None


def test_a_loss_before_the_first_evaluation_gives_way_to_accuracy() -> None:
    view = LiveView(5, "t", Console(file=io.StringIO(), force_terminal=True))
    view.update(line(1))
    assert "training loss" in shown(view)
    view.update(line(2, accuracy=0.4))
    view.update(line(3))
    text = shown(view)
    assert "40.00 %  best 40.00 % in round 2" in text
    assert "training loss" not in text


def test_the_summary_says_what_came_of_it(fake_run: Callable[..., Path]) -> None:
    folder = fake_run(status="stopped", reason="no gain in [ten] rounds")
    record = run.read(folder)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary(record))
    text = console.export_text()
    final, best = run.final(record), run.best(record)
    assert final
    assert best
    assert "krum against IPM stopped" in text
    assert f"{100 * final.value:.2f} %  best {100 * best.value:.2f} % in round {best.round}" in text
    assert "40 of 40" in text
    assert "no gain in [ten] rounds" in text
    assert max(map(len, text.splitlines())) <= 80
    console.print(summary(run.read(fake_run("empty", rounds=0))))


def test_the_summary_tells_of_backdoors_and_kept_rounds(trusting_run: Callable[..., Path]) -> None:
    folder = trusting_run(trust={"kept": {4: "first", 9: "nobody is [trusted]"}, "backdoors": ("badnets", "dba")})
    console = Console(width=90, record=True, file=io.StringIO())
    console.print(summary(run.read(folder)))
    text = console.export_text()
    assert "in 2 rounds, last in round 9: nobody is [trusted]" in text
    assert "badnets 90.00 %, dba 80.00 %" in text

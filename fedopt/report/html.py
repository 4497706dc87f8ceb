"""The report of one run: a single HTML file with pictures and tables, readable without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from fedopt.report import clients as people
from fedopt.report import record as run
from fedopt.report import selection, trust, units
from fedopt.report.page import POINTS, document, escape, save, thin
from fedopt.report.record import Axis, RunRecord

AXES: tuple[Axis, ...] = ("round", "bytes", "seconds", "updates")
TRIGGERED = "Share of the test samples with the attack's trigger that are taken for its target."
BACKDOORS_NAMED = 3
"""How many backdoors have a figure at the head of the report."""


def write(path: str | Path) -> Path:
    """Write `report.html` into the run folder `path`, and return its path.

    Raises FedoptError where the folder is no run folder.
    """
    record = run.read(path)
    toml = (record.path / "config.toml").read_text(encoding="utf-8")
    return save(record.path / "report.html", page(record, toml))


def page(record: RunRecord, toml: str) -> str:
    """The report as HTML text; `toml` is the config as it is to be shown."""
    data = {key: value for key, value in _data(record).items() if value is not None}
    return document(f"{record.name} · fedopt", _body(record, data, toml), data, ["report.js"])


def _data(record: RunRecord) -> dict[str, Any]:
    order = {str(name): i for i, name in enumerate(record.partition.get("class_names") or ())}
    recalls = sorted(run.fields(record, "recall"), key=lambda name: order.get(name, len(order)))
    many = people.population(record) > people.CLIENTS_DRAWN
    return {
        "accuracy": curves(record, ["accuracy", "client_eval.score", "g_mean", "macro_f1"], share=True),
        "backdoor": _backdoors(record),
        "loss": curves(record, ["loss", "train_loss", "client_eval.loss"]),
        "recall": _recall_lines(record, recalls) if len(recalls) <= people.LINES_DRAWN else None,
        "recalls": _recall_map(record, recalls) if len(recalls) > people.LINES_DRAWN else None,
        "info": curves(record, [f"info.{name}" for name in run.fields(record, "info")]),
        **trust.pictures(record),
        **selection.pictures(record),
        "phases": _phases(record),
        "traffic": _traffic(record),
        "partition": people.partition(record),
        "sizes": people.sizes(record) if many else None,
        "participation": None if many else people.participation(record),
        "times": people.times(record) if many else None,
        "clients": people.table(record),
        "rejections": people.rejections(record),
    }


def axes(record: RunRecord) -> tuple[Axis, ...]:
    """What curves can be drawn against: those of all runs, and the counters that this run's strategy keeps."""
    kept = set(run.fields(record, "info"))
    return (*AXES, *(counter for counter in run.COUNTERS if counter in kept))


def curves(record: RunRecord, names: Sequence[str], *, share: bool = False) -> dict[str, Any] | None:
    """The chart of those of `names` that were measured, each thinned for itself; None where none was."""
    traces = []
    for name in names:
        y = run.series(record, name).y
        if not y:
            continue
        kept = thin(y)
        trace = {
            "name": units.label(name.removeprefix("info.")),
            "y": [y[i] for i in kept],
            "x": {axis: [x[i] for i in kept] for axis in axes(record) for x in [run.series(record, name, axis).x]},
        }
        if name == "client_eval.score":
            low, high = (run.series(record, f"client_eval.score_{p}").y for p in ("p10", "p90"))
            if len(low) == len(high) == len(y):
                trace["name"] = "clients, 10 to 90 %"
                trace |= {"low": [low[i] for i in kept], "high": [high[i] for i in kept]}
        traces.append(trace)
    return {"share": share, "traces": traces} if traces else None


def _backdoors(record: RunRecord) -> dict[str, Any] | None:
    names = run.fields(record, "backdoor")
    chart = curves(record, [f"backdoor.{name}" for name in names], share=True)
    for name, trace in zip(names, chart["traces"] if chart else (), strict=True):
        trace["name"] = name
    return chart


def _recall_lines(record: RunRecord, recalls: Sequence[str]) -> dict[str, Any] | None:
    chart = curves(record, [f"recall.{name}" for name in recalls], share=True)
    for name, trace in zip(recalls, chart["traces"] if chart else (), strict=False):
        trace["name"] = name
    return chart


def _recall_map(record: RunRecord, recalls: Sequence[str]) -> dict[str, Any]:
    measured = [line for line in record.lines if isinstance(line.get("recall"), Mapping)]
    kept = [measured[i] for i in people.spread(len(measured), people.COLUMNS)]
    return {
        "classes": recalls,
        "rounds": [line["round"] for line in kept],
        "values": [[run.number(line["recall"].get(name)) for line in kept] for name in recalls],
    }


def _phases(record: RunRecord) -> dict[str, Any] | None:
    names = list(run.totals(record).phases)
    if not names:
        return None
    cells = people.pieces(len(record.lines), people.COLUMNS)
    return {
        "names": names,
        "rounds": [record.lines[cell[-1]]["round"] for cell in cells],
        "values": [
            [sum(run.at(record.lines[i], f"seconds.{name}") or 0 for i in cell) / len(cell) for cell in cells]
            for name in names
        ],
    }


def _traffic(record: RunRecord) -> dict[str, Any] | None:
    up, down = [0.0], [0.0]
    for line in record.lines:
        up.append(up[-1] + (run.at(line, "bytes_up") or 0))
        down.append(down[-1] + (run.at(line, "bytes_down") or 0))
    if not up[-1] and not down[-1]:
        return None
    kept = people.spread(len(record.lines), POINTS)
    return {
        "rounds": [record.lines[i]["round"] for i in kept],
        "up": [up[i + 1] for i in kept],
        "down": [down[i + 1] for i in kept],
    }


def _body(record: RunRecord, data: Mapping[str, Any], toml: str) -> str:
    parts = [
        "<main>",
        _header(record),
        "<noscript><p class='call'>The pictures and tables below need JavaScript.</p></noscript>",
    ]
    if not record.lines:
        parts.append('<p class="call">No exchange has been recorded yet.</p>')
    parts += [_progress_section(data), _trust_section(data), _cost_section(record, data)]
    parts.append(_clients_section(record, data))
    if "rejections" in data:
        parts.append(_section("Rejected answers", '<div class="card" id="rejections"></div>'))
    parts.append(_section("Config", f'<div class="card"><pre>{escape(toml.strip())}</pre></div>'))
    versions = [f"{name} {record.info[name]}" for name in ("fedopt", "torch", "python") if record.info.get(name)]
    parts += [f"<footer>{escape(' · '.join([*versions, str(record.path)]))}</footer>", "</main>"]
    return "\n".join(part for part in parts if part)


def _section(title: str, inner: str, controls: str = "") -> str:
    return f'<section><div class="bar"><h2>{escape(title)}</h2>{controls}</div>\n{inner}</section>' if inner else ""


def _plot(ident: str, title: str, note: str = "", look: str = "", extra: str = "", height: int = 0) -> str:
    tall = " tall" if "tall" in look else ""
    wide = " wide" if "wide" in look else ""
    caption = f'<p class="note">{escape(note)}</p>' if note else ""
    high = f' style="height:{height}px"' if height else ""
    return (
        f'<div class="card{wide}"><div class="title"><h3>{escape(title)}</h3>{extra}</div>'
        f'<div class="plot{tall}" id="{ident}" role="figure" aria-label="{escape(title)}"{high}></div>{caption}</div>'
    )


def _progress_section(data: Mapping[str, Any]) -> str:
    plots = [
        _plot("accuracy", "Accuracy") if "accuracy" in data else "",
        _plot("backdoor", "Backdoor success", TRIGGERED) if "backdoor" in data else "",
        _plot("loss", "Loss") if "loss" in data else "",
        _plot("recall", "Recall by class") if "recall" in data else "",
        _plot("recalls", "Recall by class") if "recalls" in data else "",
    ]
    if "info" in data:
        select = '<select id="info-choice" aria-label="number to show"></select>'
        plots.append(_plot("info", "Strategy", extra=select))
    plots = [plot for plot in plots if plot]
    if not plots:
        return ""
    if len(plots) % 2:
        plots[-1] = plots[-1].replace('class="card', 'class="card wide', 1)
    controls = '<span class="choice" id="axis" role="group" aria-label="horizontal axis"></span>'
    if "loss" in data or "info" in data:
        controls += '<label class="tick"><input type="checkbox" id="log">log scale for losses</label>'
    return _section("Progress", f'<div class="grid">{"".join(plots)}</div>', controls)


def _trust_section(data: Mapping[str, Any]) -> str:
    plots = []
    alone = "" if "trusts" in data and "weight" in data else "wide"
    if "trust" in data:
        found = data["trust"]
        mean = f", as a mean over {found['span']} rounds" if found["span"] > 1 else ""
        note = f"The weight that the rule gave to a client's update{mean}; grey is no weight, blank is no answer."
        if found["above"]:
            note += f" Weights above {units.percent(found['most'])} look alike."
        height = 110 + max(190, 16 * len(found["names"]))
        plots.append(_plot("trust", "Trust of each client over time", note, "wide", height=height))
    if "trusts" in data:
        note = "The weight of one client's update: the mean, and a band of 10 to 90 % of the clients."
        plots.append(_plot("trusts", "Trust over time", note, alone))
    if "weight" in data:
        note = "The sum of the weights of all attackers, and what it would be if all answers counted alike."
        plots.append(_plot("weight", "Weight on attackers", note, alone))
    return _section("Trust", f'<div class="grid">{"".join(plots)}</div>' if plots else "")


def _cost_section(record: RunRecord, data: Mapping[str, Any]) -> str:
    plots = []
    if "phases" in data:
        phases = run.totals(record).phases
        whole = sum(phases.values()) or 1.0
        note = ", ".join(f"{name} {units.duration(s)} ({100 * s / whole:.0f} %)" for name, s in phases.items())
        plots.append(_plot("phases", "Seconds per exchange by phase", f"In total: {note}."))
    if "traffic" in data:
        sums = run.totals(record)
        note = f"{units.nbytes(sums.bytes_up)} up, {units.nbytes(sums.bytes_down)} down."
        plots.append(_plot("traffic", "Bytes since the start", note))
    return _section("Cost", f'<div class="grid">{"".join(plots)}</div>' if plots else "")


def _clients_section(record: RunRecord, data: Mapping[str, Any]) -> str:
    everybody, listed = people.population(record), len(people.listed(record))
    cards = []
    if "partition" in data:
        drawn = data["partition"]
        note = f"{len(drawn['names'])} of {units.count(everybody)} clients, evenly spaced in the order of their size"
        note = "" if drawn["every"] else f"{note}, and attackers."
        cards.append(_plot("partition", "Who holds what", note, "wide" + ("" if drawn["bars"] else " tall")))
    if "sizes" in data:
        note = f"{units.count(listed)} of {units.count(everybody)} clients, evenly spaced, and attackers."
        cards.append(_plot("sizes", "Sizes", note if listed < everybody else ""))
    if "heads" in data:
        note = "How many clients were asked in each round, and where a search ended what it found."
        cards.append(_plot("heads", "Head-count", note if data["heads"]["searched"]["x"] else "", "wide"))
    if "searches" in data:
        note = "The mean loss of candidate models by the number of their clients; dots are the loss to get below."
        cards.append(_plot("searches", "Searches for a head-count", note, "wide"))
    if "times" in data:
        cards.append(_plot("participation", "Participation"))
    if "participation" in data:
        tall = " tall" if everybody > 30 else ""
        cards.append(_plot("participation", "Participation", "", "wide" + tall))
    if "clients" in data:
        sums = run.totals(record)
        notes = []
        shown = len(data["clients"]["rows"])
        if shown < everybody:
            which = "the first" if listed == everybody else "some, and those that took part:"
            notes.append(f"The table holds {which} {units.count(shown)} of {units.count(everybody)} clients.")
        silent = sums.asked - sums.updates - sums.rejected
        if silent > 0:
            verb = "was" if silent == 1 else "were"
            notes.append(f"{units.count(silent)} of {units.count(sums.asked)} requests {verb} left unanswered.")
        note = f'<p class="note">{escape(" ".join(notes))}</p>' if notes else ""
        cards.append(f'<div class="card wide"><div id="clients"></div>{note}</div>')
    return _section("Clients", f'<div class="grid">{"".join(cards)}</div>' if cards else "")


def _header(record: RunRecord) -> str:
    status = str(record.info.get("status") or "unknown")
    bad = " bad" if status in ("failed", "interrupted") else ""
    reason = str(record.info.get("reason") or "")
    call = f'<p class="call">{escape(status)}: {escape(reason)}</p>' if reason and status != "finished" else ""
    more = [words for words in (kept_sentence(record), privacy_sentence(record)) if words]
    still = "".join(f'<p class="lead">{escape(words)}</p>' for words in more)
    figures = "".join(
        f'<div class="figure"><span>{escape(name)}</span><b>{escape(value)}</b><small>{escape(below)}</small></div>'
        for name, value, below in key_figures(record)
    )
    return (
        f'<header><div class="title"><h1>{escape(record.name)}</h1>'
        f'<span class="status{bad}">{escape(status)}</span></div>'
        f'<p class="lead">{escape(sentence(record))}</p>{still}{call}<div class="figures">{figures}</div></header>'
    )


def _named(record: RunRecord, section: str) -> str:
    """The component that a section of the config names, without its import path."""
    value = record.config.get(section)
    name = value.get("name") if isinstance(value, Mapping) else None
    return str(name).rpartition(":")[2] if name else ""


def sentence(record: RunRecord) -> str:
    """What ran, in one sentence."""
    sums, clients, attackers = run.totals(record), people.population(record), len(people.attacking(record))
    planned = record.info.get("rounds")
    words = [str(record.info.get("strategy") or _named(record, "strategy") or "A strategy")]
    if rule := _named(record, "aggregator"):
        words.append(f"with {rule}")
    if model := _named(record, "model"):
        words.append(f"trained {model}")
        if run.number(record.info.get("parameters")):
            words.append(f"({units.count(record.info['parameters'])} parameters)")
    if data := _named(record, "data"):
        words.append(f"on {data}")
    if clients:
        word = "attacker" if attackers == 1 else "attackers"
        if names := list(dict.fromkeys(map(people.attack_name, people.attacks(record)))):
            word += f" ({', '.join(names)})"
        words.append(
            f"over {units.count(clients)} clients"
            + (f", {units.count(attackers)} of them {word}," if attackers else "")
        )
    if (compression := _named(record, "compression")) not in ("", "none"):
        words.append(f"with {compression} compression")
    words.append(f"for {units.count(sums.rounds)}" + (f" of {units.count(planned)}" if planned else "") + " rounds")
    executor = record.info.get("executor")
    if isinstance(executor, Mapping) and executor.get("name"):
        why = f" ({executor['reason']})" if executor.get("reason") else ""
        words.append(f"on the {executor['name']} executor{why}")
    if started := _date(record.info.get("started")):
        words.append(f"on {started}")
    return " ".join(words) + "."


def kept_sentence(record: RunRecord) -> str:
    """In how many rounds the model stayed as it was, and why the last time; empty where it always moved."""
    kept = run.kept(record)
    if not kept:
        return ""
    last = max(kept)
    when = f", {'the last time ' if len(kept) > 1 else ''}in round {units.count(last)}"
    why = f": {kept[last].rstrip('.')}" if kept[last] else ""
    rounds = units.count(run.totals(record).rounds)
    return f"In {units.count(len(kept))} of {rounds} rounds the model was kept{when}{why}."


def privacy_sentence(record: RunRecord) -> str:
    """What a private run guarantees, how that was counted, and what it leaves out; empty for any other run."""
    said = record.info.get("privacy")
    if not isinstance(said, Mapping):
        return ""
    whole, delta = run.number(said.get("epsilon")), run.number(said.get("delta"))
    if whole is None or delta is None:
        return ""
    left = said.get("not covered")
    words = [
        f"The models are differentially private for {said.get('neighbours')}: ε = {whole:.4g} at δ = {delta:.3g} after"
        f" {said.get('rounds')} rounds (counted: {said.get('counted')})."
    ]
    if isinstance(left, list) and left:
        words.append(f"Not covered: {'; '.join(map(str, left))}.")
    return " ".join(words)


def _date(text: Any) -> str:
    try:
        when = datetime.fromisoformat(str(text))
    except ValueError:
        return ""
    return f"{when.day} {when:%B %Y, %H:%M}"


def key_figures(record: RunRecord) -> list[tuple[str, str, str]]:
    """(name, value, remark) of the numbers that stand at the head of the report."""
    sums = run.totals(record)
    name = run.headline(record)
    figures = []
    for kind, mark in (("final", run.final(record)), ("best", run.best(record))):
        if mark and name:
            figures.append((f"{kind} {units.label(name)}", units.measure(name, mark.value), f"round {mark.round}"))
    for attack in run.fields(record, "backdoor")[:BACKDOORS_NAMED]:
        if mark := run.final(record, f"backdoor.{attack}"):
            figures.append((f"backdoor {attack}", units.measure("backdoor", mark.value), f"round {mark.round}"))
    if spent := run.final(record, "info.epsilon"):
        figures.append(("privacy spent", f"ε = {spent.value:.4g}", f"round {spent.round}"))
    planned = record.info.get("rounds")
    rounds = [f"of {units.count(planned)} planned"] if planned else []
    rounds += [f"{units.count(sums.exchanges)} exchanges"] if sums.exchanges != sums.rounds else []
    rate = f"{units.count(sums.updates / sums.seconds)} per second" if sums.seconds and sums.updates else ""
    per = f"{units.nbytes(sums.bytes_up / sums.updates)} per update" if sums.updates else ""
    asked = f"of {units.count(sums.asked)} asked" if sums.asked else ""
    return [
        *figures,
        ("rounds", units.count(sums.rounds), ", ".join(rounds)),
        ("time", units.duration(sums.seconds), ""),
        ("client updates", units.count(sums.updates), rate),
        ("sent up", units.nbytes(sums.bytes_up), per),
        ("sent down", units.nbytes(sums.bytes_down), ""),
        ("rejected", units.count(sums.rejected), asked),
    ]

"""The command line: run, sweep, resume, check, show, list, report, compare, export, replay, watch, deploy."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table
from safetensors.torch import save

from fedopt import config as configs
from fedopt import execution, experiment
from fedopt import setup as setups
from fedopt import sweep as sweeps
from fedopt.deploy import commands as deploy
from fedopt.engine.checkpoint import load_checkpoint, newest
from fedopt.engine.record import named_model, write_bytes
from fedopt.registry import ConfigError, facts
from fedopt.report import compare as comparison
from fedopt.report import html, live, record, sweep_table, trackers
from fedopt.report import sweep as sweep_results
from fedopt.types import FedoptError
from fedopt.wire import address, tail

app = typer.Typer(
    help="Federated learning: simulate it, attack it, compare it, with one small config.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(deploy.app, name="deploy")
console = Console()
errors = Console(stderr=True)

ConfigFile = Annotated[Path, typer.Argument(help="A TOML file; see configs/.")]
RunFolder = Annotated[Path, typer.Argument(help="The folder of a run.")]
Changes = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=VALUE", help="Change a key of the config.")]


def main() -> None:
    """Entry point: an error of the user's making is one clear line and exit status 2."""
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=errors, show_path=False)]
    )
    sys.path.insert(0, os.getcwd())  # own rules and attacks beside the config are found by import path
    try:
        app()
    except FedoptError as error:
        for text in (str(error), *getattr(error, "__notes__", ())):
            errors.print(f"[bold red]error[/] {escape(text)}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from error


@app.command()
def run(
    config: ConfigFile,
    changes: Changes = None,
    sweep: Annotated[
        list[str] | None, typer.Option("--sweep", metavar="a.b=1,2,3", help="Run once for every combination of values.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repeat with so many consecutive seeds.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No live view.")] = False,
) -> None:
    """Run an experiment; with --sweep or --seeds, one after another in sub-folders, skipping what is finished."""
    first = configs.load(config, changes or [])
    cells = list(_cells(first, changes or [], sweep or [], seeds))
    ready = setups.build(configs.load(config, cells[0][1]))
    for _, more in cells[1:]:  # a mistake in the last cell is found before the first one runs
        configs.load(config, more)
    done = []
    for number, (folder, more) in enumerate(cells):
        done.append(folder)
        if len(cells) > 1 and _finished(folder, configs.load(config, more)):
            _say(f"{folder} is finished already")
            continue
        again = len(cells) > 1 and (folder / "config.toml").exists()
        setup = ready if number == 0 else setups.build(configs.load(config, more))
        _execute(setup, folder, quiet, resume=again)
    if len(done) > 1:
        _compare(done, _root(first) / "compare.html")


@app.command()
def sweep(
    config: Annotated[Path, typer.Argument(help="A TOML file with the axes of a sweep; see docs/sweep.md.")],
    changes: Changes = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; runs/NAME by default.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of the cells, which several sweeps may share; OUT/cells by default.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes, of one thread each.")] = 1,
    table: Annotated[bool, typer.Option("--table", help="Run nothing; show what there is.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Run nothing; write the page of what there is.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No live view.")] = False,
) -> None:
    """Run every cell of rules x attacks x ..., going on where it was stopped; what is finished is not run again."""
    plan = sweeps.read(config, changes or [], out=out, cache=cache)
    stopped = False
    if table or report:
        ledger = sweeps.results(plan)
    else:
        ledger, stopped = sweeps.run(plan, jobs, console=None if quiet else console)
    if table or not (report or quiet):
        console.print(sweep_table.table(sweep_results.read(plan.out), console.width))
    counts = ledger.counts()
    _say(", ".join(f"{count} {state}" for state, count in counts.items()))
    _say(f"report: {plan.out / 'sweep.html'}")
    if stopped:
        _say("run the same command again to go on")
        raise typer.Exit(130)
    if not (table or report) and "failed" in counts:
        raise typer.Exit(1)


@app.command()
def resume(
    folder: RunFolder,
    changes: Changes = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No live view.")] = False,
) -> None:
    """Continue a run from its newest checkpoint; --set may extend it (run.rounds), not change its numbers."""
    setup = setups.build(experiment.stored_config(folder, changes or []))
    _execute(setup, folder, quiet, resume=True)


@app.command()
def check(config: ConfigFile, changes: Changes = None) -> None:
    """Check everything that can be known before the first exchange: names, options, data, model, preconditions."""
    setup = setups.build(configs.load(config, changes or []))
    facts_of_run = setups.describe(setup)
    console.print(f"[green]ok[/] {escape(str(config))}", highlight=False, soft_wrap=True)
    for name, value in facts_of_run.items():
        _say(f"  {name}: {value}")


@app.command()
def show(config: ConfigFile, changes: Changes = None) -> None:
    """Print the resolved experiment: the config with its base, changes and defaults."""
    resolved = configs.load(config, changes or []).to_toml()
    if console.is_terminal:
        console.print(Syntax(resolved, "toml", background_color="default"))
    else:
        _say(resolved)


@app.command("list")
def list_components(
    room: Annotated[str | None, typer.Argument(help="Only this section, e.g. aggregator.")] = None,
) -> None:
    """Show every component with its options and where it is from."""
    twice = ("strategy.server", "compression.down")
    rooms = {section: registry for section, registry in configs.SECTIONS.items() if section not in twice}
    if room is not None and room not in rooms:
        raise ConfigError(room, f"no such section. Sections: {', '.join(rooms)}")
    for section, registry in rooms.items():
        if room not in (None, section):
            continue
        console.print(f"\n[bold]{escape(f'[{section}]')}[/]")
        keys = [key for key in configs.section_keys(section) if key != "name"]
        if keys:
            console.print(f"  [dim]keys of the section itself: {', '.join(keys)}[/]")
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for name in registry.names():
            component = registry.get(name)
            text = [escape((inspect.getdoc(component) or "").split("\n\n")[0].replace("\n", " "))]
            text += [f"  {escape(str(option))}" for option in registry.options(name).values()]
            source = facts(component).get("reference", "")
            text += [f"[dim]{escape(source)}[/]"] if source else []
            table.add_row(f"  {escape(name)}", "\n".join(text))
        console.print(table)


@app.command()
def report(folder: RunFolder) -> None:
    """Write the report of a run (finished or not) again."""
    _say(html.write(folder))


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Run folders; one with seed-... inside is a group.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("compare.html"),
) -> None:
    """Compare runs: one picture, one table; repeats with other seeds become mean and spread."""
    _compare(folders, out)


@app.command()
def export(
    folder: RunFolder,
    out: Annotated[Path | None, typer.Option(help="The file to write; FOLDER/model.safetensors by default.")] = None,
) -> None:
    """Write the model of the newest checkpoint as safetensors that plain torch loads into the same module."""
    setup = setups.build(experiment.stored_config(folder))
    found = newest(folder / "checkpoints")
    if found is None:
        raise ConfigError("run.out", f"{folder} has no checkpoint yet")
    model = setup.strategy.model(setup.problem, load_checkpoint(found).state)
    if model is None:
        raise ConfigError("strategy.name", f"'{setup.config.strategy.name}' has no common model to export")
    target = out or folder / "model.safetensors"
    write_bytes(target, save(named_model(setup.problem, model)))
    _say(target)


@app.command()
def replay(
    folder: RunFolder,
    exchange: Annotated[int, typer.Option(help="Number of the exchange, from 0.")],
    client: Annotated[int, typer.Option(help="Id of the client.")],
    debugger: Annotated[bool, typer.Option("--debugger", help="Stop in the debugger where the client starts.")] = False,
) -> None:
    """Repeat one client's work of one exchange, alone and eagerly."""

    def before(setup: setups.Setup, planned: Any) -> None:
        _say(f"client {client} ({setup.problem.data.name(client)}), program '{planned.program}'")
        if debugger:
            breakpoint()

    uplink = experiment.replay(folder, exchange, client, before=before)
    for name, vector in uplink.vectors.items():
        _say(f"  {name}: {vector.numel()} entries, norm {float(vector.norm()):.6g}")
    for name, value in uplink.metrics.items():
        _say(f"  {name}: {float(value):.6g}")
    _say(f"  weight: {float(uplink.weight):.6g}")


@app.command()
def watch(
    what: Annotated[str, typer.Argument(help="The folder of a run, or host:port of a server's monitor.")],
    authority: Annotated[
        Path | None, typer.Option(help="Certificate in PEM of the authority that signed the server's.")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="The server's monitor-token.")] = None,
    reconnect: Annotated[float, typer.Option(min=0.0, help="Seconds to look for a server that is away.")] = 60.0,
) -> None:
    """Watch a run while it goes on, here or on a server.

    Exit status: 0 the run is done, 1 it failed, 130 it was interrupted, 3 its server was lost.
    """
    if Path(what).exists():
        happenings = tail.follow(Path(what))
    else:
        where = address.read(what, "a run folder or host:port")
        try:
            from fedopt.wire import monitor
        except ImportError as error:
            raise FedoptError(f"a monitor is watched over gRPC ({error}): pip install 'fedopt[deploy]'") from error
        try:
            root = authority.read_bytes() if authority else None
        except OSError as error:
            raise FedoptError(f"--authority: a certificate in PEM is needed, {authority} is none ({error})") from error
        secret = monitor.token(token_file, "--token-file") if token_file else None
        happenings = monitor.follow(where, root, secret, reconnect)
    try:
        over = live.watch(happenings, what, console)
    except KeyboardInterrupt:
        _say("the run goes on; it is watched no more")
        raise typer.Exit(130) from None
    _say(f"{over.status}: {over.reason}")
    raise typer.Exit({"finished": 0, "stopped": 0, "interrupted": 130, "lost": 3}.get(over.status, 1))


def _cells(
    config: configs.Config, changes: Sequence[str], sweeps: Sequence[str], seeds: int
) -> Iterator[tuple[Path, list[str]]]:
    """Folder and changes of each run."""
    root = _root(config)
    axes = []
    for sweep in sweeps:
        path, equals, values = sweep.partition("=")
        if not equals or not values:
            raise ConfigError(sweep, "a sweep has the form section.key=value,value, e.g. optimizer.lr=0.1,0.01")
        axes.append([f"{path}={value}" for value in _split(values)])
    for combination in itertools.product(*axes):
        folder = root / ",".join(combination).replace("/", "_") if combination else root
        for seed in range(seeds):
            more = [*changes, *combination]
            if seeds > 1:
                more.append(f"run.seed={config.run.seed + seed}")
            yield (folder / f"seed-{config.run.seed + seed}" if seeds > 1 else folder), more


def _split(values: str) -> list[str]:
    """Values separated by commas that stand outside of brackets and quotes."""
    parts, depth, quoted = [""], 0, False
    for character in values:
        quoted ^= character == '"'
        depth += (character in "[{") - (character in "]}")
        if character == "," and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _root(config: configs.Config) -> Path:
    """The folder of a run, or of the runs of a sweep."""
    return Path(config.run.out or Path("runs") / config.run.name)


def _finished(folder: Path, config: configs.Config) -> bool:
    """Whether this very experiment was run in the folder to its end."""
    path = folder / "run.json"
    if not path.exists() or json.loads(path.read_text(encoding="utf-8"))["status"] not in ("finished", "stopped"):
        return False
    return not configs.differences(experiment.stored_config(folder), config).keys() - {"run.out"}


def _execute(setup: setups.Setup, folder: Path, quiet: bool, resume: bool) -> None:
    config = setup.config
    title = f"{config.run.name}: {config.strategy.name} on {config.data.name}, {setup.problem.clients} clients"
    follow = [_TRACKERS[name](folder) for name in config.run.track]
    try:
        if quiet:
            result = execution.execute(setup, folder, callbacks=follow, resume=resume)
        else:
            with live.LiveView(config.run.rounds, title, console, attackers=setup.adversary.clients.tolist()) as view:
                result = execution.execute(setup, folder, callbacks=[view.update, *follow], resume=resume)
    except BaseException:
        with contextlib.suppress(FedoptError, OSError):  # the report of a failed run must not hide why it failed
            html.write(folder)
        raise
    finally:
        for tracker in follow:
            tracker.close()
    path = html.write(folder)
    if not quiet:
        console.print(live.summary(record.read(folder)))
    _say(f"{result.status}: {result.reason}")
    _say(f"report: {path}")
    if result.status == "interrupted":
        raise typer.Exit(130)


def _say(text: object) -> None:
    """One line as it is: paths and configs are no markup, and are not broken at the width of a terminal."""
    console.print(str(text), markup=False, highlight=False, soft_wrap=True)


def _compare(folders: Sequence[Path], out: Path) -> None:
    path, table = comparison.compare(folders, out)
    console.print(table)
    _say(f"comparison: {path}")


_TRACKERS = {"tensorboard": trackers.tensorboard, "mlflow": trackers.mlflow}

"""The repository as a whole: what it promises to a reader, and what its packages contain."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fedopt import aggregators, attacks, keys, strategies
from fedopt.types import Replies, Strategy

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def own_files() -> list[Path]:
    """Files under version control and new ones that are not ignored, as paths below ROOT."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs a git checkout, to tell the project's files from others: {error}")
    return sorted(path for name in listed.split("\0") if name and (path := Path(name)) and (ROOT / path).is_file())


def text_of(path: Path) -> str | None:
    data = (ROOT / path).read_bytes()
    return None if b"\0" in data else data.decode("utf-8", errors="replace")


def commands_of_make() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_no_file_speaks_of_one_machine() -> None:
    # written in parts, so that this file does not find itself
    local = re.compile(
        "|".join(["/wor" + "k/", "/roo" + "t/", "/opt/" + "venv", "/home/" + r"[a-z]", "/Users/" + "[a-z]"])
    )
    found = [
        f"{path}:{number}: {line.strip()[:100]}"
        for path in own_files()
        for number, line in enumerate((text_of(path) or "").splitlines(), 1)
        if local.search(line)
    ]
    assert not found, "absolute paths of one machine:\n" + "\n".join(found)


def test_every_module_is_named_for_its_idea() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    found = [str(path) for path in own_files() if vague & {part.removesuffix(".py").strip("_") for part in path.parts}]
    assert not found, f"names that say nothing of the content: {found}"


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [version for version in versions if version.lower() != "unreleased"]
    assert released[0] == PROJECT["version"]


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    split = [line.split("==") for line in lines]
    assert all(len(parts) == 2 for parts in split), f"not exact: {[p for p in split if len(p) != 2]}"
    return {normal(name): version for name, version in split}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_name_one_version_of_everything_asked_for() -> None:
    pinned = pins()
    assert (pinned["torch"], pinned["flwr"], pinned["ray"]) == ("2.13.0", "1.41.0", "2.55.1")
    asked = [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]
    names = {normal(match.group()) for r in asked if (match := re.match(r"[A-Za-z0-9_.-]+", r))} - {"fedopt"}
    assert not names - pinned.keys(), "asked for in pyproject.toml, absent from constraints.txt"
    assert not {name for name in pinned if name.startswith(("nvidia", "torchvision", "torchaudio"))}


def test_the_extra_all_is_all_but_dev() -> None:
    extras = PROJECT["optional-dependencies"]
    (everything,) = extras["all"]
    assert set(everything.removeprefix("fedopt[").removesuffix("]").split(",")) == extras.keys() - {"all", "dev"}


def test_the_readme_names_commands_that_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", readme, re.DOTALL))
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)", code))
    assert named >= {"demo", "test"}
    assert named <= commands_of_make(), f"no such target: {named - commands_of_make()}"


def test_the_readme_links_to_files_that_exist() -> None:
    links = [
        (document, target)
        for document in own_files()
        if document.suffix == ".md"
        for target in re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", text_of(document) or "")
    ]
    broken = [f"{document}: {target}" for document, target in links if not (ROOT / document.parent / target).exists()]
    assert not broken


def test_continuous_integration_runs_the_test_command_of_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    commands = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert commands[-1] == "exec make test"


def examples(folder: Path) -> set[str]:
    """The code of CONTRIBUTING.md as modules in `folder`; their names."""
    blocks = re.findall(
        r"```python\n# fedopt/\w+/(\w+)\.py\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL
    )
    for name, code in blocks:
        (folder / f"{name}.py").write_text(code)
    return {name for name, _ in blocks}


def test_the_examples_for_contributors_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert examples(tmp_path) == {"norm_bound", "boost", "descent"}
    monkeypatch.syspath_prepend(tmp_path)
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4]])

    rule = aggregators.build("norm_bound:norm_bound", {"bound": 1.0})
    delta, _, _ = rule.apply(rows, rule.init(2), weights=torch.tensor([3.0, 1.0]))
    # lengths 5 and 0.5: the first row is cut to (0.6, 0.8), the second stays
    torch.testing.assert_close(delta, torch.tensor([0.75 * 0.6 + 0.25 * 0.3, 0.75 * 0.8 + 0.25 * 0.4]))

    attack = attacks.build("boost:boost", {"scale": 2.0})
    assert attack.vectors is not None
    assert attack.vectors(rows, 2).tolist() == (2 * rows).tolist()

    strategy = strategies.registry.get("descent:descent")(lr=0.5)
    assert isinstance(strategy, Strategy)
    problem = SimpleNamespace(clients=2, initial={"params": torch.tensor([1.0, 1.0])})
    key = keys.root(0)
    assert strategy.programs(problem).work.keys() == {"gradient", "evaluate"}
    state = strategy.init(problem, key)
    exchange = strategy.plan(problem, state, key)
    assert exchange.clients.tolist() == [0, 1]
    replies = Replies(exchange, exchange.clients, {"delta": -rows}, torch.tensor([1.0, 3.0]), {}, {})
    state, _ = strategy.absorb(problem, state, replies, key)
    # the weighted mean of the gradients is (0.975, 1.3)
    torch.testing.assert_close(strategy.model(problem, state)["params"], torch.tensor([1 - 0.4875, 1 - 0.65]))


@pytest.mark.slow
def test_the_wheel_holds_the_library_alone_and_all_of_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for path in own_files():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes((ROOT / path).read_bytes())
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        ".",
    ]
    subprocess.run(build, cwd=source, check=True, timeout=300)
    (wheel,) = tmp_path.glob("fedopt-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = [archive.read(name).decode() for name in names if name.endswith("entry_points.txt")]
        (metadata,) = [archive.read(name).decode() for name in names if name.endswith("METADATA")]
    info = f"fedopt-{PROJECT['version']}.dist-info/"
    beside = f"fedopt-{PROJECT['version']}.data/data/share/fedopt/"  # files that `fedopt deploy` writes out
    assert f"{beside}server/app.py" in names and f"{beside}docker/client.Dockerfile" in names
    library = {name for name in names if not name.startswith((info, beside))}
    assert library == {path.as_posix() for path in own_files() if path.parts[0] == "fedopt"}
    assert f"{info}licenses/LICENSE" in names
    assert "fedopt = fedopt.cli:main" in entry_points
    assert "torchvision" not in metadata

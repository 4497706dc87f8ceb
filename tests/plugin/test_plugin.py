"""A package outside the repository brings rules of its own and measures them."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fedopt

PACKAGE = Path(__file__).parent / "fedopt-plugin-example"
LIBRARY = Path(fedopt.__file__).parents[1]

missing = [name for name in ("pip", "setuptools") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"{missing} not installed, so no package can be")

SCRIPT = """
import json
import torch
from fedopt import aggregators
from fedopt.registry import ConfigError
from fedopt.testing import check_aggregator
from fedopt.types import FedoptError

def outcome(call):
    try:
        return call()
    except (AssertionError, FedoptError) as error:
        return f"{type(error).__name__}: {error}"

path = "fedopt_plugin_example:"
updates = torch.tensor([[0.0, 3.0], [1.0, 0.0], [5.0, 0.0]])
def applied(name, options):
    rule = aggregators.build(name, options)
    return [rule.name, rule.scope, rule.apply(updates, rule.init(3), weights=torch.ones(3))[0].tolist()]

print(json.dumps({
    "names": aggregators.registry.names(),
    "builtin": aggregators.registry.builtin(),
    "entry point": applied("midrange", {}),
    "import path": applied(path + "clipped_mean", {"tau": 1.0}),
    "check entry point": outcome(lambda: check_aggregator("midrange")),
    "check import path": outcome(lambda: check_aggregator(path + "clipped_mean", tau=1.0)),
    "check faulty": outcome(lambda: check_aggregator(path + "trusting_mean", f=2)),
    "wrong option": outcome(lambda: aggregators.build(path + "clipped_mean", {"tao": 1.0})),
    "wrong path": outcome(lambda: aggregators.build(path + "cliped_mean", {})),
    "refused": aggregators.build(path + "trusting_mean", {"f": 3}).admits(3),
}))
"""


def run(arguments: list[str], path: list[Path]) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], env=env, cwd=path[0], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process sees that has the package installed."""
    source, target = tmp_path_factory.mktemp("source") / "package", tmp_path_factory.mktemp("target")
    shutil.copytree(PACKAGE, source)  # a build leaves files beside its source
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    run(["-m", "pip", "install", *options, str(source)], [source])
    result: dict[str, Any] = json.loads(run(["-c", SCRIPT], [target, LIBRARY]))
    return result


def test_the_entry_point_is_listed_beside_the_built_in_rules(seen: dict[str, Any]) -> None:
    assert "midrange" in seen["names"] and "midrange" not in seen["builtin"]
    assert set(seen["names"]) > set(seen["builtin"])


def test_both_rules_are_built_and_run(seen: dict[str, Any]) -> None:
    assert seen["entry point"] == ["midrange", "coordinate", [2.5, 1.5]]
    name, scope, delta = seen["import path"]
    assert (name, scope) == ("clipped_mean", "vector")
    assert delta == pytest.approx([2 / 3, 1 / 3])


def test_both_rules_pass_the_contract_and_a_faulty_one_does_not(seen: dict[str, Any]) -> None:
    assert seen["check entry point"] is None
    assert seen["check import path"] is None
    assert seen["check faulty"].startswith("AssertionError: trusting_mean breaks the law 'permutation'")


def test_options_are_checked_as_for_built_in_rules(seen: dict[str, Any]) -> None:
    assert "ConfigError: aggregator.tao: unknown option. Did you mean 'tau'?" in seen["wrong option"]
    assert "ConfigError: aggregator.name: 'fedopt_plugin_example' has no 'cliped_mean'" in seen["wrong path"]
    assert seen["refused"] == (
        "trusting_mean with f = 3 needs n >= f + 1 = 4 clients per exchange, 3 were given;"
        " lower aggregator.f or raise participation.count"
    )

"""What fedopt is installed with: versions that fit each other, and that nobody has published a weakness of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fedopt

ROOT = Path(fedopt.__file__).parents[1]


def audited(requirements: Path) -> list[dict[str, Any]]:
    """Each dependency with its known weaknesses, `vulns`, or with `skip_reason` where nothing is known of it."""
    pytest.importorskip("pip_audit", reason="needs pip-audit: pip install 'fedopt[dev]'")
    command = ["-m", "pip_audit", "-r", str(requirements), "--no-deps", "--disable-pip", "-f", "json"]
    done = subprocess.run(
        [sys.executable, *command, "--progress-spinner", "off"], capture_output=True, text=True, timeout=900.0,
        check=False,
    )  # fmt: skip
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        pytest.skip(f"advisories cannot be asked for here: {done.stderr.strip().splitlines()[-1:]}")
    return found


@pytest.mark.slow
def test_no_dependency_has_a_known_weakness() -> None:
    found = audited(ROOT / "constraints.txt")
    known = [one for one in found if "skip_reason" not in one]
    if not known:
        pytest.skip(f"there are no advisories for any of {len(found)} dependencies: {found[0]['skip_reason']}")
    weak = {f"{one['name']} {one['version']}": [v["id"] for v in one["vulns"]] for one in known if one["vulns"]}
    assert not weak, "raise these in constraints.txt, or say there why they may stay"


@pytest.mark.slow
def test_the_installed_versions_fit_each_other() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, timeout=120.0, check=False
    )
    assert done.returncode == 0, done.stdout

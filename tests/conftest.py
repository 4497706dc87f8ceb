"""The ground that every test stands on: one thread, fixed seeds, nothing from or to the machine around it."""

from __future__ import annotations

import atexit
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

# set before torch, Ray and Flower are imported, which read them once
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    DO_NOT_TRACK="1",
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
    FLWR_DISABLE_UPDATE_CHECK="1",
    FLWR_HOME=tempfile.mkdtemp(prefix="flwr-"),
    FLWR_TELEMETRY_ENABLED="0",
    HF_HUB_OFFLINE="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    RAY_USAGE_STATS_ENABLED="0",
)
atexit.register(shutil.rmtree, os.environ["FLWR_HOME"], ignore_errors=True)
# a cluster or a SuperLink that the caller works with is not the tests' to use
for name in [name for name in os.environ if name in ("RAY_ADDRESS", "RAY_NAMESPACE") or name.startswith("FLWR_LOCAL_")]:
    del os.environ[name]

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)

hypothesis.settings.register_profile("fedopt", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fedopt")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch sees none"))


@pytest.fixture(autouse=True)
def seeds() -> None:
    """The global generators start alike in every test, whichever ran before. fedopt itself never draws from them."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def fedopt_data() -> Callable[[str], Path]:
    """`fedopt_data("mnist10k")` is that file or folder under $FEDOPT_DATA; the test is skipped where it is absent."""

    def find(name: str) -> Path:
        folder = os.environ.get("FEDOPT_DATA")
        if not folder:
            pytest.skip(f"needs '{name}': set FEDOPT_DATA to the folder of published data sets that holds it")
        path = Path(folder) / name
        if not path.exists():
            pytest.skip(f"needs '{name}', which is absent from FEDOPT_DATA={folder}")
        return path

    return find

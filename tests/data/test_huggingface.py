"""Data sets in the form of Hugging Face, by the package itself where it is installed, by a stand-in elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from fedopt.data.huggingface import huggingface
from fedopt.registry import ConfigError


class Table:
    """What the source uses of a `datasets.Dataset`."""

    def __init__(self, columns: dict[str, list[Any]], features: dict[str, Any]) -> None:
        self.columns = columns
        self.column_names = list(columns)
        self.features = features

    def __getitem__(self, name: str) -> list[Any]:
        return self.columns[name]


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    names = {"x": None, "who": None, "label": SimpleNamespace(names=["no", "yes"])}
    rows = {"x": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "who": ["u10", "u2", "u10"], "label": [0, 1, 1]}
    seen: dict[str, Any] = {"train": Table(rows, names), "test": Table({k: v[:1] for k, v in rows.items()}, names)}
    module = ModuleType("datasets")

    def load_dataset(path: str, name: str | None, revision: str | None = None) -> dict[str, Table]:
        if path == "nobody/nothing":
            raise FileNotFoundError("no such data set")
        seen["asked"] = (path, name, revision)
        return {"train": seen["train"], "test": seen["test"]}

    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return seen


def test_a_hub_name_goes_to_the_package(standin: dict[str, Any]) -> None:
    got = huggingface(hub="some/one", subset="small", revision="v1", features="x", group="who", test_split="test")
    assert standin["asked"] == ("some/one", "small", "v1")
    assert got.x.tolist() == [[1, 2], [3, 4], [5, 6]] and got.x.dtype == torch.float32
    assert got.y.tolist() == [0, 1, 1] and got.class_names == ("no", "yes")
    assert got.group_names == ("u10", "u2") and got.groups is not None and got.groups.tolist() == [0, 1, 0]
    assert got.test is not None and got.test.x.tolist() == [[1, 2]] and got.test.y.tolist() == [0]


def test_mistakes_are_named(standin: dict[str, Any], tmp_path: Path) -> None:
    for options, message in (
        ({}, r"data\.path: one of data\.path .* and data\.hub"),
        ({"hub": "a/b", "path": "c"}, r"data\.path: one of"),
        ({"hub": "nobody/nothing"}, r"data\.hub: nobody/nothing .*found FileNotFoundError: no such data set"),
        ({"hub": "a/b", "features": "z"}, r"data\.features: a/b has no column 'z'.* Columns: x, who, label"),
        ({"hub": "a/b", "label": "labels"}, r"data\.label: .*Did you mean 'label'"),
        ({"hub": "a/b", "group": "whom"}, r"data\.group: .*Did you mean 'who'"),
        ({"hub": "a/b", "split": "trian"}, r"data\.split: no split 'trian'\. Did you mean 'train'"),
        ({"hub": "a/b", "test_split": "dev"}, r"data\.test_split: no split 'dev'.* Splits: train, test"),
        ({"path": str(tmp_path / "none")}, r"data\.path: there is no .*none"),
    ):
        with pytest.raises(ConfigError, match=message):
            huggingface(**{"features": "x", **options})
    standin["train"].columns["x"] = [[1.0], [1.0, 2.0], [3.0]]
    with pytest.raises(ConfigError, match=r"data\.features: a/b .*of one shape in column 'x', found list"):
        huggingface(hub="a/b", features="x")
    standin["train"].columns |= {"x": [1.0, 2.0, 3.0], "label": [-1, 0, 1]}
    with pytest.raises(ConfigError, match=r"data\.label: .*expected labels 0 to 1"):
        huggingface(hub="a/b", features="x")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"data\.name: .*'datasets'.*pip install 'fedopt\[hf\]'"):
        huggingface(hub="a/b", features="x")


@pytest.fixture
def datasets() -> Any:
    return pytest.importorskip("datasets", reason="needs the extra 'hf'")


def test_saved_to_disk(datasets: Any, tmp_path: Path) -> None:
    columns = {"text": ["a good film", "a bad one", "good good"], "label": [1, 0, 1], "score": [0.5, 1.5, 2.5]}
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos"]), score=datasets.Value("float32")
    )
    table = datasets.Dataset.from_dict(columns, features=features)
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=table, dev=table.select([1])).save_to_disk(str(tmp_path / "two"))
    got = huggingface(path=str(tmp_path / "one"), features="text", length=2)
    # good (3), a (2) and then bad, film, one in alphabetical order
    assert got.x.tolist() == [[3, 2], [3, 4], [2, 2]] and got.vocabulary == 7
    assert got.y.tolist() == [1, 0, 1] and got.class_names == ("neg", "pos")
    both = huggingface(path=str(tmp_path / "two"), features="text", test_split="dev", length=2)
    assert both.test is not None and both.test.x.tolist() == [[3, 4]] and both.test.y.tolist() == [0]
    numbers = huggingface(path=str(tmp_path / "one"), features="label", label="score")
    assert numbers.task == "regression" and numbers.y.tolist() == [0.5, 1.5, 2.5] and numbers.x.tolist() == [1, 0, 1]


# the csv reader of datasets 5.2 leaves its file to the garbage collector
@pytest.mark.filterwarnings("ignore:Exception ignored in.*train.csv:pytest.PytestUnraisableExceptionWarning")
def test_data_files(datasets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "table"
    folder.mkdir()
    (folder / "train.csv").write_text("size,label\n1.5,b\n2.5,a\n3.5,b\n")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    got = huggingface(path=str(folder), features="size")
    assert got.x.tolist() == [1.5, 2.5, 3.5] and got.y.tolist() == [1, 0, 1] and got.class_names == ("a", "b")


def test_images(datasets: Any, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    grey = [image.new("L", (3, 2), color=51 * i) for i in range(2)]
    colour = [image.new("RGB", (3, 2), color=(255, 51 * i, 0)) for i in range(2)]
    features = datasets.Features(g=datasets.Image(), c=datasets.Image(), label=datasets.Value("int64"))
    table = datasets.Dataset.from_dict({"g": grey, "c": colour, "label": [7, 3]}, features=features)
    table.save_to_disk(str(tmp_path / "images"))
    got = huggingface(path=str(tmp_path / "images"), features="g")
    assert got.x.shape == (2, 1, 2, 3) and got.x[1].unique().tolist() == pytest.approx([0.2])
    assert got.class_names == ("3", "7") and got.y.tolist() == [1, 0]
    got = huggingface(path=str(tmp_path / "images"), features="c")
    assert got.x.shape == (2, 3, 2, 3) and got.x[1, :, 0, 0].tolist() == pytest.approx([1.0, 0.2, 0.0])

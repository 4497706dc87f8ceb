"""Every source against a reading of the same file in plain loops, and its messages about files that are wrong."""

from __future__ import annotations

import gzip
import itertools
import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedopt.data import data_path, registry
from fedopt.data.digits import digits
from fedopt.data.idx import idx
from fedopt.data.libsvm import libsvm
from fedopt.data.plays import plays
from fedopt.data.synthetic import synthetic
from fedopt.data.text import text
from fedopt.registry import ConfigError, facts

Find = Callable[[str], Path]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDOPT_DATA", str(tmp_path))
    return tmp_path


def test_every_source_has_a_reference_and_documented_options() -> None:
    for name in registry.names():
        source = registry.get(name)
        assert facts(source)["reference"], name
        for option in registry.options(name):
            assert f"{option}:" in source.__doc__ or f"{option}," in source.__doc__ or f"{option} " in source.__doc__, (
                name,
                option,
            )


def test_paths_are_below_the_data_folder_or_absolute(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "a").write_text("x")
    assert data_path("a", "data.file") == root / "a"
    monkeypatch.delenv("FEDOPT_DATA")
    assert data_path(str(root / "a"), "data.file") == root / "a"
    with pytest.raises(ConfigError, match=r"data\.file: 'a' is a relative path and FEDOPT_DATA is not set"):
        data_path("a", "data.file")


def test_a_missing_file_is_named_with_the_folder_and_the_key(root: Path) -> None:
    for key, source in (
        ("images", lambda: idx(images="no/x", labels="no/y")),
        ("file", lambda: libsvm(file="no/x")),
        ("file", lambda: text(file="no/x")),
        ("file", lambda: plays(file="no/x")),
        ("path", lambda: registry.get("cifar10")(path="no/x")),
        ("folder", lambda: registry.get("ecg")(folder="no/x")),
    ):
        with pytest.raises(ConfigError) as error:
            source()
        message = str(error.value)
        assert error.value.where == f"data.{key}"
        assert str(root / "no/x") in message and f"FEDOPT_DATA is {root}" in message and f"data.{key}" in message


def test_digits() -> None:
    from sklearn.datasets import load_digits

    got, want = digits(), load_digits()
    assert got.x.shape == (1797, 1, 8, 8) and got.x.dtype == torch.float32
    assert float(got.x.min()) == 0 and float(got.x.max()) == 1
    assert got.y.tolist() == want.target.tolist() and got.y.dtype == torch.int64
    assert got.x[5, 0, 2, 3].item() == want.images[5][2][3] / 16
    assert got.class_names == tuple("0123456789")


def idx_bytes(values: list[int], *shape: int) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + b"".join(struct.pack(">I", s) for s in shape) + bytes(values)


def pair(root: Path, n: int = 4) -> None:
    (root / "x").write_bytes(idx_bytes([(7 * i) % 256 for i in range(n * 6)], n, 2, 3))
    (root / "y").write_bytes(idx_bytes([i % 3 for i in range(n)], n))


def test_idx_raw_and_gzipped_are_the_same(root: Path) -> None:
    pair(root)
    (root / "x.gz").write_bytes(gzip.compress((root / "x").read_bytes()))
    raw, zipped = idx(images="x", labels="y", normalise="none"), idx(images="x.gz", labels="y", normalise="none")
    assert torch.equal(raw.x, zipped.x) and raw.x.shape == (4, 1, 2, 3) and raw.x.dtype == torch.float32
    for s, r, c in itertools.product(range(4), range(2), range(3)):
        assert raw.x[s, 0, r, c] == (7 * (s * 6 + r * 3 + c)) % 256
    assert raw.y.tolist() == [0, 1, 2, 0] and raw.class_names == ("0", "1", "2")


def test_idx_scales_the_test_set_like_the_training_set(root: Path) -> None:
    pair(root)
    (root / "tx").write_bytes(idx_bytes([255] * 6, 1, 2, 3))
    (root / "ty").write_bytes(idx_bytes([1], 1))
    got = idx(images="x", labels="y", test_images="tx", test_labels="ty", normalise="standard")
    pixels = [((7 * i) % 256) / 255 for i in range(24)]
    mean = sum(pixels) / 24
    deviation = math.sqrt(sum((p - mean) ** 2 for p in pixels) / 24)
    assert got.x.flatten().tolist() == pytest.approx([(p - mean) / deviation for p in pixels], abs=1e-5)
    assert got.test is not None
    assert got.test.x.flatten().tolist() == pytest.approx([(1 - mean) / deviation] * 6, abs=1e-5)
    with pytest.raises(ConfigError, match=r"data\.test_labels: missing"):
        idx(images="x", labels="y", test_images="tx")


def test_idx_refuses_what_is_not_the_format(root: Path) -> None:
    pair(root)
    whole = (root / "x").read_bytes()
    zipped = gzip.compress(bytes(range(256)) * 40)
    for name, content, found in (
        ("short", whole[:-1], "4 x 2 x 3 bytes after its header, found 23 bytes"),
        ("long", whole + b"1", "found 25 bytes"),
        ("magic", b"\x89PNG" + whole[4:], "first bytes are 00000803, found 89504e47"),
        ("floats", b"\0\0\x0d\x03" + whole[4:], "found 00000d03"),
        ("labels", (root / "y").read_bytes(), "found 00000801"),
        ("empty", b"", "found no bytes"),
        ("header", whole[:9], "found 0 bytes"),
        ("cut.gz", zipped[: len(zipped) // 2], "found a broken or truncated gzip stream"),
        ("bad.gz", zipped[:20] + b"\xff\xff\xff\xff" + zipped[24:], "found a broken or truncated gzip stream"),
    ):
        (root / name).write_bytes(content)
        with pytest.raises(ConfigError) as error:
            idx(images=name, labels="y")
        assert str(root / name) in str(error.value) and found in str(error.value), error.value
        assert error.value.where == "data.images"
    (root / "y5").write_bytes(idx_bytes([0] * 5, 5))
    with pytest.raises(ConfigError, match=r"data\.labels: .*y5 cannot be used: expected 4 labels.*found 5"):
        idx(images="x", labels="y5")


def test_idx_reads_mnist(fedopt_data: Find) -> None:
    folder = fedopt_data("mnist10k")
    images, labels = folder / "t10k-images-idx3-ubyte.gz", folder / "t10k-labels-idx1-ubyte.gz"
    got = idx(images=str(images), labels=str(labels))
    raw = gzip.decompress(images.read_bytes())
    assert got.x.shape == (10_000, 1, 28, 28) and len(got.class_names) == 10
    for s, r, c in ((0, 7, 6), (17, 14, 14), (9_999, 20, 13)):
        assert got.x[s, 0, r, c].item() == pytest.approx(raw[16 + s * 784 + r * 28 + c] / 255)
    assert got.y.tolist() == list(gzip.decompress(labels.read_bytes())[8:])


def libsvm_loops(path: Path, features: int) -> tuple[list[list[float]], list[float]]:
    rows, labels = [], []
    for line in path.read_text().splitlines():
        words = line.split()
        labels.append(float(words[0]))
        row = [0.0] * features
        for word in words[1:]:
            index, value = word.split(":")
            row[int(index) - 1] = float(value)
        rows.append(row)
    return rows, labels


def test_libsvm_against_loops(root: Path) -> None:
    (root / "t").write_text("2 1:0.5 3:-1\n-1 2:4\n10 4:1e-3\n2\n")
    (root / "more").write_text("-1 5:1\n")
    got = libsvm(file="t")
    rows, labels = libsvm_loops(root / "t", 4)
    assert torch.equal(got.x, torch.tensor(rows)) and got.x.dtype == torch.float32
    assert got.class_names == ("-1", "2", "10")
    assert [got.class_names[c] for c in got.y.tolist()] == [f"{v:g}" for v in labels]
    wide = libsvm(file="t", features=6, test_file="more")
    assert wide.x.shape == (4, 6) and wide.test is not None and wide.test.x.tolist() == [[0, 0, 0, 0, 1, 0]]
    assert wide.test.y.tolist() == [0]
    assert libsvm(file="t", test_file="more").x.shape == (4, 5)
    numbers = libsvm(file="t", task="regression")
    assert numbers.y.tolist() == labels and numbers.y.dtype == torch.float32 and numbers.task == "regression"


def test_libsvm_refuses_what_is_not_the_format(root: Path) -> None:
    (root / "good").write_text("1 1:1 2:2\n-1 1:3\n")
    zipped = gzip.compress((root / "good").read_bytes() * 1000)
    for name, content, found in (
        ("garbage", b"1 1:1\n-1 1:2 2:3\n<html>404</html>\n", "found line 3: '<html>404</html>'"),
        ("pairs", b"1 1:1\n-1 1=2\n", "found line 2: '-1 1=2'"),
        ("order", b"1 2:1 1:1\n", "found line 1: '1 2:1 1:1'"),
        ("bytes", b"1 1:1\n\xff\xfe\x00\n", "found line 2"),
        ("empty", b"", "found no line"),
        ("nan", b"1 1:nan\n", "found NaN"),
        ("cut.gz", zipped[: len(zipped) // 2], "ended before"),
    ):
        (root / name).write_bytes(content)
        with pytest.raises(ConfigError) as error:
            libsvm(file=name)
        assert str(root / name) in str(error.value) and found in str(error.value), error.value
        assert error.value.where == "data.file"
        with pytest.raises(ConfigError) as error:
            libsvm(file="good", test_file=name)
        assert name in str(error.value)
    with pytest.raises(ConfigError, match=r"data\.features: 1 was given, and .*good has 2"):
        libsvm(file="good", features=1)
    (root / "third").write_text("7 1:1\n")
    with pytest.raises(ConfigError, match=r"data\.test_file: .*third.*expected the classes .*\(-1, 1\), found also 7"):
        libsvm(file="good", test_file="third")


def test_libsvm_reads_mushrooms(fedopt_data: Find) -> None:
    path = fedopt_data("libsvm/mushrooms")
    got = libsvm(file=str(path))
    rows, labels = libsvm_loops(path, 112)
    assert torch.equal(got.x, torch.tensor(rows)) and got.x.shape == (8124, 112)
    assert got.y.tolist() == [int(v) - 1 for v in labels] and got.class_names == ("1", "2")


def test_libsvm_reads_the_other_tables(fedopt_data: Find) -> None:
    assert libsvm(file=str(fedopt_data("libsvm/a9a"))).x.shape == (32_561, 123)
    assert libsvm(file=str(fedopt_data("libsvm/w8a"))).x.shape == (49_749, 300)


def text_loops(train: list[str], sentences: list[str], size: int, length: int) -> list[list[int]]:
    tally: dict[str, int] = {}
    for sentence in train:
        for word in sentence.lower().split():
            tally[word] = tally.get(word, 0) + 1
    chosen: list[str] = []
    while len(chosen) < size - 2 and len(chosen) < len(tally):
        best = None
        for word, count in tally.items():
            if word in chosen:
                continue
            if best is None or count > tally[best] or (count == tally[best] and word < best):
                best = word
        assert best is not None
        chosen.append(best)
    rows = []
    for sentence in sentences:
        row = [0] * length
        for place, word in enumerate(sentence.lower().split()):
            if place < length:
                row[place] = chosen.index(word) + 2 if word in chosen else 1
        rows.append(row)
    return rows


def test_text_against_loops(root: Path) -> None:
    train = ["the Cat sat", "a dog sat on the mat", "the end", "  "]
    (root / "t").write_text("sentence\tlabel\n" + "".join(f"{s}\t{i % 2}\n" for i, s in enumerate(train)))
    # the columns in the other order, another name for the sentence, Windows line ends
    (root / "v").write_bytes(b"label\tcontent\r\n1\ta new cat \x1d sat\r\n")
    got = text(file="t", test_file="v", vocabulary_size=6, length=4)
    assert got.x.tolist() == text_loops(train, train, 6, 4) and got.x.dtype == torch.int64
    assert got.test is not None
    assert got.test.x.tolist() == text_loops(train, ["a new cat sat"], 6, 4) and got.test.y.tolist() == [1]
    assert got.y.tolist() == [0, 1, 0, 1] and got.class_names == ("0", "1") and got.vocabulary == 6
    assert text(file="t", vocabulary_size=100).vocabulary == 2 + 8
    assert text(file="t", lower=False, vocabulary_size=100).vocabulary == 2 + 8
    three = root / "w"
    three.write_text("id\ttext\tlabel\n0\thello\tbad\n1\tworld\tgood\n")
    assert text(file="w", sentence="text").class_names == ("bad", "good")


def test_text_refuses_what_is_not_the_format(root: Path) -> None:
    for name, content, found in (
        ("notab", b"sentence label\nhello 1\n", "found 'sentence label'"),
        ("nohead", b"hello\t1\nworld\t0\n", "found 'hello\\t1'"),
        ("three", b"id\ttext\tlabel\n", "found 'id\\ttext\\tlabel'"),
        ("line", b"sentence\tlabel\na\t1\nb 1\n", "2 tab-separated columns in every line, found 1 in line 3: 'b 1'"),
        ("none", b"sentence\tlabel\n", "found none"),
        ("utf", b"sentence\tlabel\n\xff\t1\n", "expected UTF-8 text, found other bytes at position 15"),
    ):
        (root / name).write_bytes(content)
        with pytest.raises(ConfigError) as error:
            text(file=name)
        assert str(root / name) in str(error.value) and found in str(error.value), error.value
    (root / "t").write_text("sentence\tlabel\na\t1\nb\t0\n")
    (root / "v").write_text("sentence\tlabel\na\t-1\n")
    with pytest.raises(ConfigError, match=r"data\.test_file: .*expected the classes .*\(0, 1\), found also -1"):
        text(file="t", test_file="v")


def test_text_reads_sst2(fedopt_data: Find) -> None:
    folder = fedopt_data("sst2")
    got = text(file=str(folder / "train.tsv"), test_file=str(folder / "dev.tsv"), vocabulary_size=5000, length=16)
    assert got.x.shape == (67_349, 16) and got.test is not None and got.test.x.shape == (872, 16)
    assert got.vocabulary == 5000 and int(got.x.max()) == 4999
    assert int(got.y.sum()) == 37_569 and int(got.test.y.sum()) == 444
    tally: dict[str, int] = {}
    for line in (folder / "train.tsv").read_text().splitlines()[1:]:
        for word in line.split("\t")[1].split():
            tally[word] = tally.get(word, 0) + 1
    best = max(tally, key=lambda word: tally[word])
    assert best == "the"
    first = next(i for i, row in enumerate(got.x.tolist()) if 2 in row)
    assert best in (folder / "train.tsv").read_text().splitlines()[1 + first].split("\t")[1].split()


SCENE = """ANNE:
one two three
four

BEN:
yes

ANNE:
five six

CARA:
a much longer speech than that of Ben, in one line
"""


def plays_loops(speech: str, number: dict[str, int], length: int, stride: int) -> list[tuple[list[int], list[int]]]:
    samples = []
    start = 0
    while start + length + 1 <= len(speech):
        x = [number[speech[start + i]] for i in range(length)]
        y = [number[speech[start + i + 1]] for i in range(length)]
        samples.append((x, y))
        start += stride
    return samples


def test_plays_against_loops(root: Path) -> None:
    (root / "p").write_text(SCENE)
    said = {
        "ANNE": "one two three\nfour\nfive six",
        "BEN": "yes",
        "CARA": "a much longer speech than that of Ben, in one line",
    }
    number = {c: i for i, c in enumerate(sorted(set("".join(said.values()))))}
    for length, stride, share in ((4, None, 0.25), (5, 2, 0.0), (2, 3, 0.5)):
        got = plays(file="p", length=length, stride=stride, held_out=share)
        xs, ys, owners, test = [], [], [], []
        for name, speech in said.items():
            cut = len(speech) - int(share * len(speech))
            train = plays_loops(speech[:cut], number, length, stride or length)
            for x, y in train:
                xs.append(x)
                ys.append(y)
                owners.append(name)
            if train:
                test += plays_loops(speech[cut:], number, length, stride or length)
        assert got.x.tolist() == xs and got.y.tolist() == ys
        assert got.groups is not None and [got.group_names[g] for g in got.groups.tolist()] == owners
        assert (got.test is None) == (share == 0)
        if got.test is not None:
            assert got.test.x.tolist() == [x for x, _ in test] and got.test.y.tolist() == [y for _, y in test]
        assert got.vocabulary == len(got.class_names) == len(number)
        last = plays(file="p", length=length, stride=stride, held_out=share, target="last")
        assert last.y.tolist() == [y[-1] for y in ys] and torch.equal(last.x, got.x)
    assert plays(file="p", length=4, held_out=0.0, min_samples=7).group_names == ("CARA",)


def test_plays_refuses_what_is_not_the_format(root: Path) -> None:
    (root / "p").write_text(SCENE)
    (root / "prose").write_text("It was a dark night.\nIt rained.\n")
    with pytest.raises(ConfigError, match=r"data\.file: .*prose.*'Name:', found 'It was a dark night\.'"):
        plays(file="prose")
    (root / "mute").write_text("ANNE:\n\nBEN:\n")
    with pytest.raises(ConfigError, match=r"data\.file: .*mute.*expected speeches below the lines 'Name:', found none"):
        plays(file="mute")
    with pytest.raises(ConfigError, match=r"data\.length: no role of .* has 1 windows of 200 .*longest role has 50"):
        plays(file="p", length=200)


def test_plays_reads_shakespeare(fedopt_data: Find) -> None:
    path = fedopt_data("shakespeare/input.txt")
    got = plays(file=str(path), length=80)
    assert got.groups is not None and got.test is not None
    said: dict[str, str] = {}
    for turn in path.read_text().strip("\n").split("\n\n"):
        name, *lines = turn.split("\n")
        for line in lines:
            said[name[:-1]] = f"{said[name[:-1]]}\n{line}" if name[:-1] in said else line
    romeo = got.group_names.index("ROMEO")
    first = got.x[got.groups == romeo][0]
    assert "".join(got.class_names[c] for c in first.tolist()) == said["ROMEO"][:80]
    y = got.y[got.groups == romeo][0]
    assert "".join(got.class_names[c] for c in y.tolist()) == said["ROMEO"][1:81]
    expected = 0
    for speech in said.values():
        train = len(speech) - int(0.2 * len(speech))
        expected += max(0, (train - 1) // 80)
    assert len(got.x) == expected


def test_synthetic_has_the_moments_of_the_paper() -> None:
    got = synthetic(alpha=1.0, beta=4.0, devices=300, min_samples=40, log_mean=0.0, log_deviation=0.0, seed=3)
    assert got.groups is not None and torch.bincount(got.groups).tolist() == [41] * 300
    means, variances = [], []
    for k in range(300):
        x = got.x[got.groups == k].double()
        means.append(x.mean(0))
        variances.append(x.var(0))
    # within a device: variance j^-1.2
    measured = torch.stack(variances).mean(0)
    for j in (1, 2, 10, 60):
        assert measured[j - 1].item() == pytest.approx(j**-1.2, rel=0.1)
    # across devices: v_k,j has variance beta + 1, of which beta is common to all j
    centres = torch.stack(means)
    assert centres[:, 20:].var(0).mean().item() == pytest.approx(5.0, rel=0.15)
    assert centres[:, 20:].mean(1).var().item() == pytest.approx(4.0 + 1 / 40, rel=0.2)


def mistakes_of_the_best_line(x: Tensor, y: Tensor, classes: int) -> int:
    """Mistakes of a perceptron in its last walk: none, or few, only where one linear model explains all labels."""
    features = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], 1)
    weight = torch.zeros(classes, features.shape[1], dtype=torch.float64)
    mistakes = 0
    for _ in range(200):
        mistakes = 0
        for f, c in zip(features, y.tolist(), strict=True):
            guess = int((weight @ f).argmax())
            if guess != c:
                weight[c] += f
                weight[guess] -= f
                mistakes += 1
        if not mistakes:
            break
    return mistakes


def test_synthetic_has_one_linear_model_per_device_or_one_for_all() -> None:
    small = {"devices": 2, "features": 5, "classes": 3, "min_samples": 100, "log_mean": 0.0, "log_deviation": 0.0}
    own, same = synthetic(**small), synthetic(iid=True, **small)  # type: ignore[arg-type]
    assert mistakes_of_the_best_line(own.x[:101], own.y[:101], 3) <= 2
    assert mistakes_of_the_best_line(own.x, own.y, 3) > 10
    assert mistakes_of_the_best_line(same.x, same.y, 3) <= 2


def test_synthetic_alpha_cancels_in_the_labels() -> None:
    low, high = synthetic(devices=5), synthetic(devices=5, alpha=4.0)
    assert torch.equal(low.x, high.x) and (low.y == high.y).double().mean() > 0.99


def test_synthetic_is_a_function_of_its_seed_and_refuses_contradictions() -> None:
    one, same, other = synthetic(devices=4), synthetic(devices=4), synthetic(devices=4, seed=1)
    assert torch.equal(one.x, same.x) and torch.equal(one.y, same.y)
    assert one.x.shape != other.x.shape or not torch.equal(one.x, other.x)
    flat = synthetic(devices=50, iid=True, min_samples=400, log_mean=0.0, log_deviation=0.0)
    assert flat.groups is not None
    centres = torch.stack([flat.x[flat.groups == k].mean(0) for k in range(50)])
    assert centres.abs().max() < 0.25  # all centres are 0
    with pytest.raises(ConfigError, match=r"data\.beta: 0\.5 was given with data\.iid"):
        synthetic(iid=True, beta=0.5)

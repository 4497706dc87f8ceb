"""Aligning people by their ids against sets and loops, and a party's own table."""

from __future__ import annotations

import hashlib
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fedopt.data import _alignment, align, read_party
from fedopt.keys import permutation, root, uniform
from fedopt.registry import ConfigError


def lists(parties: int, people: int = 40, seed: int = 0) -> list[list[str]]:
    """Everybody lacks some people, and has the others in an order of its own; ids of different length."""
    names = [f"person-{i * i}" for i in range(people)]
    ids = []
    for who in range(parties + 1):
        there = (uniform(root(seed + 10 * who), people) > 0.2).tolist()
        order = permutation(root(seed + 10 * who + 1), people).tolist()
        ids.append([names[i] for i in order if there[i]])
    return ids


def by_loops(ids: list[list[str]]) -> list[list[int]]:
    common = []
    for person in sorted(ids[0]):
        if all(person in own for own in ids):
            common.append(person)
    return [[own.index(person) for person in common] for own in ids]


def test_the_label_owner_meets_one_party_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No two parties meet, and no party is met with less than the label owner's whole list."""
    ids, met = lists(3), []

    def recorded(owner: list[str], party: list[str]) -> set[str]:
        met.append((owner, party))
        return set(owner) & set(party)

    for method in ("psi", "hashed"):
        monkeypatch.setattr(_alignment, f"_{method}", recorded)
        assert [own.tolist() for own in align(ids, method)] == by_loops(ids)  # type: ignore[arg-type]
    assert met == [(ids[0], own) for own in ids[1:]] * 2


@pytest.fixture
def psi() -> None:
    pytest.importorskip("private_set_intersection.python", reason="needs openmined-psi: pip install 'fedopt[vfl]'")


@pytest.mark.parametrize("parties", [1, 2, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_hashes_find_what_sets_find(parties: int, seed: int) -> None:
    ids = lists(parties, seed=seed)
    positions = align(ids, "hashed")
    assert [own.tolist() for own in positions] == by_loops(ids)
    assert all(own.dtype == torch.int64 for own in positions)
    common = set(ids[0]).intersection(*ids)
    assert 0 < len(common) < min(map(len, ids))
    assert all({own[p] for p in found.tolist()} == common for own, found in zip(ids, positions, strict=True))


@pytest.mark.usefixtures("psi")
@pytest.mark.parametrize("parties", [1, 3])
def test_psi_finds_what_hashes_and_sets_find(parties: int) -> None:
    ids = lists(parties, seed=5)
    ids[1].append("Ünïcode, 人")
    found = [own.tolist() for own in align(ids, "psi")]
    assert found == by_loops(ids) == [own.tolist() for own in align(ids, "hashed")]
    # the label owner has one person, and a party many
    assert [own.tolist() for own in align([["b"], ["c", "a", "b"]], "psi")] == [[0], [2]]
    with pytest.raises(ConfigError, match="nobody is with the label owner and all of 1 parties"):
        align([["a"], ["b"]], "psi")


@pytest.mark.usefixtures("psi")
def test_psi_sends_no_id_and_no_plain_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """What each side sends is taken down: neither an id nor its hash is in it, and two runs send different bytes."""
    import private_set_intersection.python as library

    sent: list[bytes] = []

    def recorded(name: str, method: str) -> None:
        side = getattr(library, name)
        original = getattr(side, method)

        def wrapper(self: Any, *given: Any) -> Any:
            message = original(self, *given)
            sent.append(message.SerializeToString())
            if method == "CreateSetupMessage":  # no filter, which would find people who are not there
                assert message.WhichOneof("data_structure") == "raw" and len(message.raw.encrypted_elements) == 10
            return message

        monkeypatch.setattr(side, method, wrapper)

    recorded("server", "CreateSetupMessage")
    recorded("server", "ProcessRequest")
    recorded("client", "CreateRequest")
    owner, party = [f"owner-{i}" for i in range(9)] + ["both"], [f"party-{i}" for i in range(9)] + ["both"]
    assert _alignment._psi(owner, party) == {"both"}
    first = list(sent)
    assert _alignment._psi(owner, party) == {"both"}
    assert len(first) == 3 and not set(first) & set(sent[3:])
    for message in sent:
        for person in owner + party:
            assert person.encode() not in message and hashlib.sha256(person.encode()).digest() not in message


def test_given_people_are_checked_and_stay_in_their_order() -> None:
    positions = align([["b", "a", "c"]] * 3, "given")
    assert [own.tolist() for own in positions] == [[0, 1, 2]] * 3


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (["b", "c", "a"], "party 1 differs from the label owner at 2 of 3 positions, first at position 1; the people"
         " are the same, in another order"),
        (["b", "a", "d"], "at 1 of 3 positions, first at position 2; 2 people are with one of them alone"),
        (["b", "a"], "at 1 of 3 positions, first at position 2; 1 people are with one of them alone"),
        (["b", "a", "c", "d", "e"], "at 2 of 5 positions, first at position 3; 2 people are with one of them alone"),
    ],
)  # fmt: skip
def test_given_people_that_differ_are_refused(other: list[str], message: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"data\.vertical\.alignment: 'given' needs.*{message}.*Use 'psi' or 'hashed'"
    ):
        align([["b", "a", "c"], ["b", "a", "c"], other], "given")


@pytest.mark.parametrize("method", ["given", "hashed", "psi"])
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([["a", "b"], ["a", "b", "a", "b"]], "party 0 repeats ids at 2 of 4 positions, first at position 2"),
        ([["a", "b", "b"], ["a", "b"]], "the label owner repeats ids at 1 of 3 positions, first at position 2"),
        ([["a"], ["a"], []], "party 1 has no people"),
        ([["a"], ["a", 7]], "ids have to be strings, party 0 has int at position 1"),
        ([], "the ids of the label owner and of the parties were needed, none were given"),
    ],
)
def test_bad_ids(method: Any, ids: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        align(ids, method)


def test_nobody_in_common() -> None:
    with pytest.raises(ConfigError, match=r"nobody is with the label owner and all of 2 parties, of 2 people of the"):
        align([["a", "b"], ["a", "c"], ["b", "c"]], "hashed")


def test_an_unknown_method() -> None:
    with pytest.raises(
        ConfigError, match=r"data\.vertical\.alignment: one of given, hashed, psi was needed, 'PSI' was given"
    ):
        align([["a"], ["a"]], "PSI")  # type: ignore[arg-type]


def test_hashes_warn_that_they_are_not_private(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        align([["a"], ["a"]], "given")
        assert not caplog.records
        align([["a"], ["a"]], "hashed")
    assert "not private" in caplog.text and "NOT private" in str(align.__doc__)


def test_psi_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "private_set_intersection.python", None)
    with pytest.raises(ConfigError, match=r"private_set_intersection\.python.*pip install 'fedopt\[vfl\]'"):
        align([["a"], ["a"]], "psi")


def test_a_table_of_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clinic.csv").write_text(
        '\ufeffage,id,"pulse, at rest"\n31,p7,60.5\n\n-1e3,"p,2",72\n', encoding="utf-8"
    )
    monkeypatch.setenv("FEDOPT_DATA", str(tmp_path))
    party = read_party("clinic.csv")
    assert party.ids == ("p7", "p,2") and party.names == ("age", "pulse, at rest")
    assert party.x.dtype == torch.float32 and party.x.tolist() == [[31.0, 60.5], [-1000.0, 72.0]]
    (tmp_path / "bank.csv").write_text("client,id\n31,1\n32,2\n")
    assert read_party(str(tmp_path / "bank.csv"), id_column="client").ids == ("31", "32")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no column 'id'"),
        ("id,a\n", "a person and a column beside 'id', or more, found 0 people and 1 columns beside it"),
        ("id\np\n", "found 1 people and 0 columns beside it"),
        ("Id,a\np,1\n", r"data\.id_column: .* has no column 'id'\. Did you mean 'Id'\? Columns: Id, a"),
        ("id,a,a\np,1,2\n", "columns with different names, found 'a' more than once"),
        ("id,a\np,1\nq,2,3\n", "2 cells in row 2, as in the first line, found 3"),
        ("id,a\np,1\n,2\n", "an id of its own in column 'id', row 2, found none"),
        ("id,a\np,1\nq,2\np,3\n", "an id of its own in column 'id', row 3, found that of row 1 again"),
        ("id,a\np,1\nq,\nr,x\n", r"finite numbers in column 'a', found '' in row 2 \(2 such rows\)"),
        ("id,a\np,nan\n", r"finite numbers in column 'a', found 'nan' in row 1 \(1 such rows\)"),
        ("id,a\np,1e60\n", r"found '1e60' in row 1"),
        ('id,a\np,"1\n', "a table in UTF-8 with commas, found unexpected end of data"),
        (b"id,a\np\xff,1\n", "a table in UTF-8 with commas, found 'utf-8' codec"),
    ],
)
def test_a_wrong_table(content: str | bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "party.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message):
        read_party(str(file))


def test_files_that_are_missing_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.path: there is no "):
        read_party(str(tmp_path / "nothing.csv"))
    (tmp_path / "party.xlsx").touch()
    with pytest.raises(ConfigError, match=r"a \.csv or a \.parquet file, found '\.xlsx'"):
        read_party(str(tmp_path / "party.xlsx"))


def test_a_table_of_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'fedopt[vfl]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "party.parquet"
    parquet.write_table(pyarrow.table({"id": [12, 5], "a": [0.5, 2.0], "b": [True, False]}), file)
    party = read_party(str(file))
    assert party.ids == ("12", "5") and party.names == ("a", "b")
    assert party.x.tolist() == [[0.5, 1.0], [2.0, 0.0]]
    parquet.write_table(pyarrow.table({"id": [12, 5], "a": [0.5, None]}), file)
    with pytest.raises(ConfigError, match=r"finite numbers in column 'a', found None in row 2 \(1 such rows\)"):
        read_party(str(file))
    file.write_bytes(b"PAR1 is no file")
    with pytest.raises(ConfigError, match="a Parquet file, found "):
        read_party(str(file))

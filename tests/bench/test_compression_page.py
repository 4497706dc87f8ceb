"""The measured parts of docs/compression.md are those of the stored figures."""

from __future__ import annotations

import json
from typing import Any

from bench import codecs, convergence
from bench.pages import filled
from bench.run import RESULTS


def stored(name: str) -> Any:
    [path] = RESULTS.glob(f"*/{name}.json")
    return json.loads(path.read_text())


def test_the_table_of_codecs_is_that_of_the_stored_figures() -> None:
    page = codecs.PAGE.read_text(encoding="utf-8")
    assert filled(page, codecs.COMMAND, codecs.text(stored("codecs"))) == page, "run `python -m bench.codecs`"


def test_every_codec_is_in_the_table() -> None:
    from fedopt.compression import registry

    assert {kind for kind, _ in codecs.CODECS.values()} == set(registry.builtin())


def test_the_page_and_picture_of_convergence_are_those_of_the_stored_figures() -> None:
    page = convergence.PAGE.read_text(encoding="utf-8")
    found = {part: stored(f"convergence.{part}") for part in ("convex", "mnist")}
    asked = "run `python -m bench.convergence --draw`"
    assert filled(page, convergence.COMMAND, convergence.text(found)) == page, asked
    first, again = convergence.drawn(found), convergence.drawn(found)
    assert first == again and first.startswith(b"<?xml")

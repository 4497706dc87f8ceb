"""Texts between marks."""

from __future__ import annotations

import pytest

from bench.pages import END, filled


def test_the_marks_stay_and_so_does_what_is_around_them() -> None:
    page = f"before\n<!-- begin: a -->\nold\n{END}\nbetween\n<!-- begin: b -->\n{END}\nafter\n"
    once = filled(page, "b", "new\n")
    assert once == f"before\n<!-- begin: a -->\nold\n{END}\nbetween\n<!-- begin: b -->\n\nnew\n\n{END}\nafter\n"
    assert filled(once, "b", "new\n") == once
    assert filled(page, "a", "one") == page.replace("\nold\n", "\n\none\n\n")
    for broken in ("no marks", "<!-- begin: a --> and no end", f"{END} <!-- begin: a -->"):
        with pytest.raises(SystemExit, match="has no <!-- begin: a -->"):
            filled(broken, "a", "new")

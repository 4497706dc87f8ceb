"""Pages whose measured parts lie between marks, `<!-- begin: COMMAND -->` and `<!-- end -->`."""

from __future__ import annotations

END = "<!-- end -->"


def filled(page: str, command: str, text: str) -> str:
    """The page with another text between the marks of a command."""
    begin = f"<!-- begin: {command} -->"
    before, found, rest = page.partition(begin)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise SystemExit(f"the page has no {begin} and {END} after it; put them where the table shall stand")
    return f"{before}{begin}\n\n{text.rstrip()}\n\n{END}{after}"

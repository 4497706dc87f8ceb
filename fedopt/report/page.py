"""One self-contained HTML page: text, data and scripts in a single file that asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

POINTS = 2000
"""The most points that a drawn curve keeps."""


def escape(text: object) -> str:
    """`text` so that HTML shows it and never runs it, inside elements and attributes."""
    return html.escape(str(text), quote=True)


def document(title: str, body: str, data: Any, scripts: Iterable[str]) -> str:
    """The page: `body` is HTML, `data` goes to the scripts as JSON, `scripts` are files of this package.

    The page's own security policy admits exactly the scripts written here (by their hash) and no network at all, so
    that text from a run could not run as a script even where an escape had been forgotten.
    """
    code = [get_plotlyjs(), *(_asset(name) for name in ("page.js", *scripts))]
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in code)
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<link rel="icon" href="data:,">',
        f"<title>{escape(title)}</title>",
        f"<style>{_asset('page.css')}</style>",
    ]
    tail = [
        f'<script type="application/json" id="data">{embedded(data)}</script>',
        *(f"<script>{script}</script>" for script in code),
    ]
    return "\n".join(
        ["<!doctype html>", '<html lang="en">', "<head>", *head, "</head>", "<body>", body, *tail, "</body>", "</html>"]
    )


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def embedded(data: Any) -> str:
    """JSON that may stand inside a script element: no `<`, no NaN, floats with six digits."""
    text = json.dumps(_plain(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{value:.6g}")
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def thin(values: Sequence[float], limit: int = POINTS) -> list[int]:
    """Positions of at most `limit` of the values: all, or the first, the last and each stretch's two extremes."""
    n = len(values)
    if n <= limit:
        return list(range(n))
    stretches = (limit - 2) // 2
    kept = {0, n - 1}
    for i in range(stretches):
        stretch = range(i * n // stretches, (i + 1) * n // stretches)
        kept |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
    return sorted(kept)


def save(path: Path, text: str) -> Path:
    """Write `text` to `path` in one step, so that a reader finds the old page or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # the process id keeps two writers apart; the rename is atomic within a folder
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8", newline="\n")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path

"""`python -m fedopt` is the `fedopt` command."""

from __future__ import annotations

from fedopt.cli import main

main()

"""Sweeps: one base experiment under every combination of named settings, in cells that are run once and kept.

read(path)        the file as axes and cells, checked as a whole before anything runs
run(sweep)        runs what is not finished, in processes of their own; killed and run again, it goes on where it was
results(sweep)    what the cells came to, without running anything

A cell is a run folder whose name is the hash of its experiment. Results are `sweep.json`, of which fedopt.report
makes tables (sweep_table) and a page (sweep_page).
"""

from __future__ import annotations

from fedopt.sweep.grid import Cell, Sweep, read
from fedopt.sweep.ledger import Ledger, Outcome
from fedopt.sweep.pool import results, run

__all__ = ["Cell", "Ledger", "Outcome", "Sweep", "read", "results", "run"]

"""Accuracy against uploads, and against virtual time: the sweeps behind docs/participation.md.

studies     what is measured, and how settings are called
figures     the cells of a sweep as lines of a CSV, and back
pace        virtual time until an accuracy is reached
table       what was found, in Markdown
picture     accuracy against uploads, as SVG

`python -m bench.participation` runs, stores and writes.
"""

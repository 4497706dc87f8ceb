"""What people see of a run: the terminal view, the HTML report, the comparison of runs, experiment trackers.

Everything but the live view and the trackers reads a run folder, and nothing else.
"""

"""Editors on a benchmark: who made what, what it scored, and pages that show it.

Knows: how marks of single edits become a table, how two runs compare, how results are written down and continued.
Refuses to know: how a mark came about.
"""

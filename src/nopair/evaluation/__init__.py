"""How good an editor is, and how good a judge is, and the reports that say so.

Knows: held-out cases, who scores them, and how results are shown and written down.
Refuses to know: how an editor is trained. What it finds out never reaches training.
"""

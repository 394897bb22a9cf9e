"""How good an editor is, and the report that says so.

Knows: held-out cases, who scores them, and how results are shown and written down.
Refuses to know: how an editor is trained. What it finds out never reaches training.
"""

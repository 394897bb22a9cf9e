"""Benchmarks of image editing as their makers publish them, and edits of one's own.

Knows: their files, and where their outputs lie. Refuses to know: who edits, and who scores.
"""

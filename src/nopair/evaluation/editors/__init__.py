"""Editors to compare, ours and others', behind one protocol.

Knows: how each kind is given an image and an instruction. Refuses to know: benchmarks' files, and scores.
"""

"""Builds and ships the tiny checkpoints: base, judge and editor, in ordinary Hugging Face format.

Knows the shapes world and its right answers, which only the judge and the model cards may use. Training and editing
know
nothing of it.
"""

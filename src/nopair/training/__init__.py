"""Training: one loop that knows phases only, and the phases.

Knows how a run makes progress: steps, guarded updates, metrics, samples, checkpoints, signals. `loop` and what it uses
know no model, no judge and no data; those meet in the phases, and in `run`, which puts a recipe together.
"""

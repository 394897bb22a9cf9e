"""What a recipe will cost, found out without loading a weight.

Knows how to build a recipe's models without memory, and runs the phases of training themselves on them, counting bytes
and operations. Refuses to know what a phase does: a phase that changes changes its plan.
"""

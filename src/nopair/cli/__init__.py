"""The command line: parse, call, print.

Whatever needs torch is imported inside the command that needs it, so that `--help` is instant. Commands are in the
modules imported here, in the order in which `--help` lists them.
"""

from nopair.cli import editors, models, prepare, scores
from nopair.cli.common import app
from nopair.cli.program import main

__all__ = ["app", "editors", "main", "models", "prepare", "scores"]

"""Runs of a synthesis that can be killed, in processes of their own: `python killed.py PHOTOS DATASET RECIPE`.

Each line on the standard input starts one run in a fork, which has everything imported already; two lines come back:
its process id, and how it ended.
"""

import asyncio
import io
import os
import sys
from pathlib import Path

import datasets  # noqa: F401 - so that forks need not
import openai  # noqa: F401
from rich.console import Console

from nopair.synthesis.recipe import load_synthesis
from nopair.synthesis.run import synthesize


def main() -> None:
    photos, dataset, recipe = map(Path, sys.argv[1:])
    settings = load_synthesis(recipe)
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            asyncio.run(synthesize(photos, dataset, settings, Console(file=io.StringIO())))
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()

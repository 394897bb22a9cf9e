"""Seconds from typing `nopair edit` to the written file, beside those of the imports alone."""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

IMPORTS = "import torch, diffusers.models, transformers.models.qwen3.modeling_qwen3"

INSTRUCTION = "add a small red circle at the top left"


def seconds(command: list[str]) -> float:
    """Time of one process that must succeed."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    """Alternate the two sides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "in.png", Path(folder) / "out.png"
        Image.new("RGB", (64, 64), "teal").save(source)
        python = (sys.executable, "-c")
        sides = {
            "edit": [
                *python,
                "from nopair.cli import main; main()",
                "edit",
                str(source),
                INSTRUCTION,
                "-o",
                str(result),
            ],
            "imports": [*python, IMPORTS],
        }
        times = {name: [] for name in sides}
        for _ in range(rounds):
            for name, command in sides.items():
                times[name].append(seconds(command))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name:8} {median:.2f} s")
    print(f"ratio    {medians['edit'] / medians['imports']:.2f}")


if __name__ == "__main__":
    main()

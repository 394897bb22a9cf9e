"""What a student step of every phase takes, as operations and processor time, at one number of samples."""

import argparse
import time

from torch.utils.flop_counter import FlopCounterMode

from nopair.config import load_recipe
from nopair.planning.ledger import ATTENTION
from nopair.training.run import compose


def main() -> None:
    """A step of each phase of the studies' recipe, whose updates these ratios make comparable, counted and timed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=16, help="per step, a multiple of 8")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    count = arguments.samples
    batches = [f"warmup.batch={count}", f"sft.batch={count}", f"grpo.batch={count // 8}", f"npedit.batch={count}"]
    recipe = load_recipe("study", ["sft.steps=1", "grpo.steps=1", "grpo.group=8", *batches])
    for phase in compose(recipe).phases:
        phase.begin()
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            phase.step(0)
        times = []
        for step in range(1, 1 + arguments.rounds):
            began = time.process_time()
            phase.step(step)
            times.append(time.process_time() - began)
        phase.end()
        print(f"{phase.name:7} {counter.get_total_flops() / 1e9:8.1f} GFLOP {sorted(times)[len(times) // 2]:6.2f} s")


if __name__ == "__main__":
    main()

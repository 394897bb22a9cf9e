"""Seconds of one step of training without pairs, as it is and with compiled blocks."""

import argparse
import statistics
import time

from nopair.config import load_recipe
from nopair.training.run import Training, compose


def seconds(training: Training, step: int) -> float:
    """Time of one step."""
    began = time.perf_counter()
    training.npedit.step(step)
    return time.perf_counter() - began


def main() -> None:
    """Alternate the two sides, after two steps each to get warm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    sides = {
        name: compose(load_recipe("demo", [f"base.compile={compiled}"]))
        for name, compiled in (("eager", "false"), ("compiled", "true"))
    }
    for training in sides.values():
        training.npedit.begin()
        for step in range(2):
            training.npedit.step(step)
    times = {name: [] for name in sides}
    for step in range(2, 2 + rounds):
        for name, training in sides.items():
            times[name].append(seconds(training, step))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name:9} {median:.2f} s")
    print(f"ratio     {medians['eager'] / medians['compiled']:.2f}")


if __name__ == "__main__":
    main()

"""A plan against a measurement at a size between the tiny models and the published ones, on the CPU.

Random weights of real architectures. In a process of its own a run is put together, takes one step of each phase, and
then a second one, whose peak of resident memory is compared with the plan, less what the process held before the models
were there. Operations are counted by torch's FlopCounterMode in a third step.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

MIB = 2**20
SIZES = {"small": (512, 6, 512), "medium": (1024, 8, 768)}
"""Width and depth of the transformer, width of the judge's language model."""
ANY_NORM = 1e30
"""Random weights have large gradients, and a step that is refused makes no moments."""
VARIANTS = {
    "full": [],
    "adapters": ["base.roles=lora"],
    "adapters, recomputed": ["base.roles=lora", "base.checkpointing=true", "judge.checkpointing=true"],
    "adapters, bfloat16": ["base.roles=lora", "base.dtype=bfloat16", "judge.dtype=bfloat16"],
}


def build(folder: Path, size: str) -> None:
    """Write random models of the shipped models' architectures, made wider and deeper."""
    import torch
    from diffusers import ZImageTransformer2DModel
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    from nopair.backbones.load import load_backbone
    from nopair.judges.llava_onevision import LlavaOnevisionJudge
    from nopair.weights import resolve

    width, depth, language = SIZES[size]
    torch.manual_seed(0)
    base: Any = load_backbone(resolve("tiny:base"))
    config = {name: value for name, value in base.transformer.config.items() if not name.startswith("_")}
    heads = width // sum(config["axes_dims"])
    wider = config | {"dim": heads * sum(config["axes_dims"]), "n_layers": depth, "n_heads": heads, "n_kv_heads": heads}
    base.with_transformer(ZImageTransformer2DModel(**wider)).save(folder / "base")
    judge = LlavaOnevisionJudge.load(resolve("tiny:judge"))
    found = judge.model.config.to_dict()
    found["text_config"] |= {
        "hidden_size": language, "intermediate_size": 4 * language, "num_hidden_layers": depth,
        "num_attention_heads": 8, "num_key_value_heads": 8, "layer_types": None,
    }  # fmt: skip
    made = LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig.from_dict(found))
    made.save_pretrained(folder / "judge")
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "chat_template.jinja"):
        (folder / "judge" / name).write_bytes((resolve("tiny:judge") / name).read_bytes())


def overrides(folder: Path, variant: str, batch: int) -> list[str]:
    """What makes the demo recipe one of these models."""
    return [
        "threads=1", f"base.path={folder / 'base'}", f"judge.path={folder / 'judge'}", "warmup.steps=0",
        "npedit.optimiser=adamw", f"npedit.batch={batch}", "npedit.fake_steps=1", "logging.samples_every=0",
        "logging.sample_scenes=1", "npedit.steps=4", f"guard.max_grad_norm_spike={ANY_NORM}", *VARIANTS[variant],
    ]  # fmt: skip


class Watch(threading.Thread):
    """Notes the most resident memory while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self.over = False

    def run(self) -> None:
        while not self.over:
            self.most = max(self.most, resident())
            time.sleep(0.001)


def resident() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def require_taken(metrics: dict[str, float]) -> None:
    """Raises SystemExit where the student's step or the fake score's was refused: there is less to measure then."""
    if metrics["skipped"] or metrics["fake_skipped"]:
        raise SystemExit(f"a step was refused, and moved nothing: {metrics}")


def measure(folder: Path, variant: str, batch: int) -> dict[str, float]:
    """Peak bytes of a step beyond the process itself, and its operations."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from nopair.config import load_recipe
    from nopair.planning.ledger import ATTENTION
    from nopair.training.run import compose

    first = compose(load_recipe("demo", ["threads=1", "npedit.batch=1"])).npedit
    first.begin()
    first.step(0)  # the libraries' own memory
    del first
    before = resident()
    training = compose(load_recipe("demo", overrides(folder, variant, batch)))
    training.npedit.begin()
    require_taken(training.npedit.step(0))
    watch = Watch()
    watch.start()
    training.npedit.step(1)
    watch.over = True
    watch.join()
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        training.npedit.step(2)
    assert torch.get_num_threads() == 1
    return {"bytes": watch.most - before, "flops": counter.get_total_flops()}


def main() -> None:
    """Print a row for each variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="medium")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "VARIANT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(Path(options.measure[0]), options.measure[1], options.batch)))
        return
    from nopair.config import load_recipe
    from nopair.planning.plan import plan

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        build(folder, options.size)
        print("| variant | parameters | planned MiB | measured MiB | error | planned GFLOP | counted GFLOP | error |")
        print("|---|---|---|---|---|---|---|---|")
        for variant in VARIANTS:
            planned = plan(load_recipe("demo", overrides(folder, variant, options.batch)), device="cpu", switches=False)
            command = [sys.executable, __file__, "--batch", str(options.batch), "--measure", place, variant]
            # Freed memory goes back to the system at once, so that what is resident is what is alive.
            environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
            output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
            found = json.loads(output.splitlines()[-1])
            flops = planned.step_flops["npedit"]
            memory, operations = planned.peak_bytes / found["bytes"] - 1, flops / found["flops"] - 1
            count = sum(planned.parameters.values()) / 1e6
            print(
                f"| {variant} | {count:.0f}M | {planned.peak_bytes / MIB:.0f} | {found['bytes'] / MIB:.0f} "
                f"| {memory:+.1%} | {flops / 1e9:.0f} | {found['flops'] / 1e9:.0f} | {operations:+.2%} |"
            )


if __name__ == "__main__":
    main()

"""Operations of one generator step without pairs: ours, and the authors' implementation's, at the same configuration.

Z-Image trained in full, an InternVL3-14B judge, batch 1, 512 x 512 pixels, N_aux = 5 fake-score steps. Nothing is
trained and no weight is loaded: both sides are counted on models without memory, from the same parts.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nopair.config import Recipe, load_recipe
from nopair.judges.questions import questions_for
from nopair.planning.ledger import Ledger
from nopair.planning.plan import plan
from nopair.planning.records import shape_source, sizes_of
from nopair.planning.rehearsal import judge_and_roles
from nopair.planning.shapes import META, ShapesOnly

CONFIGURATION = [
    "base.roles=full",
    "base.dtype=float32",
    "base.bits=null",
    "base.lora={}",
    "base.checkpointing=false",
    "judge.path=OpenGVLab/InternVL3-14B-hf",
    "judge.bits=null",
    "judge.checkpointing=false",
    "warmup.steps=0",
    "npedit.batch=1",
    "npedit.accumulate=1",
    "npedit.optimiser=adamw",
    "data.cache=null",
    "logging.samples_every=0",
]


@dataclass(frozen=True)
class Parts:
    """Operations of single calls: forward, and backward with what it must compute (weights where they are trained)."""

    edit: int
    edit_backward: int
    plain: int
    plain_backward: int
    decode: int
    decode_backward: int
    encode: int
    prompt: int
    judge: int
    judge_backward: int
    all_logits: int


def authors_step(parts: Parts, fake_steps: int) -> dict[str, float]:
    """Operations of one generator step of the authors' implementation, by what they are for.

    Counted from what it does (nupurkmr9/npedit at a3cd76c):

    * each of `fake_steps` fake-score steps takes a fresh batch: it encodes the reference and two prompts, unrolls the
      student without gradient, and trains the fake score on the result;
    * the student step takes one more batch, unrolls with gradient, asks the fake score once and the teacher twice
      (guidance), decodes, and asks the judge both questions in one call, with logits at every position;
    * the number of steps of an unroll is drawn: one in a quarter of the cases, else two, so 1.75 on average;
    * the negative prompt is encoded once and kept;
    * what activation checkpointing computes again is left out, here as with us.
    """
    calls = 1.75
    encoding = parts.encode + 2 * parts.prompt
    return {
        "encoding": (fake_steps + 1) * encoding,
        "unrolls for the fake score": fake_steps * calls * parts.edit,
        "fake-score steps": fake_steps * (parts.plain + parts.plain_backward),
        "student": calls * (parts.edit + parts.edit_backward),
        "scores": 3 * parts.plain,
        "decoding": parts.decode + parts.decode_backward,
        "judge": parts.judge + parts.judge_backward + parts.all_logits,
    }


def our_step(parts: Parts, fake_steps: int) -> dict[str, float]:
    """The same for nopair, from the same parts; `main` compares the sum with the plan, which runs the phase itself.

    One batch serves all: the fake score is trained on the samples that the student step has made. An unroll always
    takes two calls. Logits are taken at one position. The negative prompt is encoded at every step.
    """
    return {
        "encoding": parts.encode + 3 * parts.prompt,
        "unrolls for the fake score": 0,
        "fake-score steps": fake_steps * (parts.plain + parts.plain_backward),
        "student": 2 * (parts.edit + parts.edit_backward),
        "scores": 3 * parts.plain,
        "decoding": parts.decode + parts.decode_backward,
        "judge": parts.judge + parts.judge_backward,
    }


def count_parts(recipe: Recipe) -> Parts:
    """Run every part once on models without memory."""
    judge, roles = judge_and_roles(recipe)
    ledger = Ledger("meta")

    def flops(work: Callable[[], Tensor]) -> tuple[int, int]:
        """Of `work`, and of the backward pass from what it returns."""
        ledger.stages.clear()
        ledger.stage("forward")
        out = work()
        ledger.stage("backward")
        if out.requires_grad:
            out.sum().backward()
        return sum(ledger.stages["forward"].flops.values()), sum(ledger.stages["backward"].flops.values())

    height, width = sizes_of(recipe)[0]
    batch = shape_source(recipe, held_out=False).batch(range(1))
    student, fake = roles.student, roles.fake
    latents = torch.empty(1, *student.latent_shape(height, width), device=META)
    live = latents.clone().requires_grad_(True)
    pixels = torch.empty(1, 3, height, width, device=META, requires_grad=True)
    t = torch.empty(1, device=META)
    questions = [questions_for(batch.categories[0], batch.instructions[0], batch.subjects[0])]
    with ShapesOnly(), ledger:
        instruction, caption = student.encode_text(batch.instructions), student.encode_text(batch.edited_captions)
        with torch.no_grad():
            encode, _ = flops(lambda: student.encode_image(batch.reference))
            prompt, _ = flops(lambda: student.encode_text(batch.edited_captions).features)
        edit = flops(lambda: student.velocity(live, t, instruction, latents))
        plain = flops(lambda: fake.velocity(latents, t, caption))
        decode = flops(lambda: student.decode_latents(live))
        judged = flops(lambda: judge.yes_minus_no(batch.reference, pixels, questions))
    rows = [judge.encode_prompt(question.prompt, (height, width)) for question in questions[0]]
    positions = sum(map(len, rows)) - len(rows)
    head = judge.model.get_output_embeddings().weight
    return Parts(*edit, *plain, *decode, encode, prompt, *judged, all_logits=2 * 2 * positions * head.numel())


def main() -> None:
    """Print both sides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fake-steps", type=int, default=5)
    parser.add_argument("--judge", default="OpenGVLab/InternVL3-14B-hf")
    options = parser.parse_args()
    count = options.fake_steps
    changes = [*CONFIGURATION, f"npedit.fake_steps={count}", f"judge.path={options.judge}"]
    recipe = load_recipe("zimage-80gb", changes)
    parts = count_parts(recipe)
    theirs, ours = authors_step(parts, count), our_step(parts, count)
    print(f"{recipe.base.path}, {recipe.judge.path}, N_aux = {count}, batch 1, {sizes_of(recipe)[0]} pixels; TFLOP")
    print("| part | authors | nopair |\n|---|---|---|")
    for name, value in theirs.items():
        print(f"| {name} | {value / 1e12:.1f} | {ours[name] / 1e12:.1f} |")
    total, own = sum(theirs.values()), sum(ours.values())
    print(f"| all | {total / 1e12:.1f} | {own / 1e12:.1f} |")
    print(f"ratio {own / total:.3f}")
    rehearsed = plan(recipe, switches=False).step_flops["npedit"]
    print(f"the plan, which runs the phase itself, counts {rehearsed / 1e12:.1f}: {rehearsed / own - 1:+.2%}")


if __name__ == "__main__":
    main()

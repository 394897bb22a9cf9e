"""Floating-point operations of one step of training without pairs: ours, and the authors' procedure at the same
models, batch and number of fake-score steps. Counted on the demo's models, no timing.

The authors' step, as their code has it (https://github.com/nupurkmr9/npedit): for each of N fake-score steps a fresh
batch is made by an unroll without gradient, one call of the student in a quarter of the cases and two in the others;
then once an unroll with gradient, teacher with guidance, fake score, decoder and judge, as here. What differs is
counted; what does not (optimisers, codecs of text and references, averaging of weights) is left out on both sides.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nopair.config import load_recipe
from nopair.judges.questions import questions_for
from nopair.training.run import compose
from nopair.world.records import WorldSource

CALLS_OF_A_STUDENT = 1.75
"""Mean number of calls of the authors' unroll: one where the drawn level is the first of four, else two."""


def operations(work: Callable[[], object]) -> float:
    """How many `work` takes."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def main() -> None:
    """Count the parts once, and put both steps together from them."""
    training = compose(load_recipe("demo"))
    roles, judge = training.roles, training.judge
    batch = WorldSource(seed=0, held_out=False).batch(range(training.recipe.npedit.batch))
    student = roles.student
    with torch.no_grad():
        reference = student.encode_image(batch.reference)
    instruction, caption = student.encode_text(batch.instructions), student.encode_text(batch.edited_captions)
    t = torch.full((len(batch),), 0.5)
    noisy = torch.randn_like(reference).requires_grad_()
    questions = [
        questions_for(*words) for words in zip(batch.categories, batch.instructions, batch.subjects, strict=True)
    ]

    def edit() -> Tensor:
        return student.velocity(noisy, t, instruction, reference)

    def judged() -> Tensor:
        return judge.yes_minus_no(batch.reference, student.decode_latents(noisy), questions)

    def backward(work: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: work().sum().backward()

    call, call_and_back = operations(edit), operations(backward(edit))
    score = operations(lambda: roles.teacher.velocity(noisy.detach(), t, caption))
    fake = operations(backward(lambda: roles.fake.velocity(noisy.detach(), t, caption)))
    feedback = operations(backward(judged))
    fixed = 3 * score + feedback
    parts = {"student call": call, "with gradient": call_and_back, "score": score, "fake-score step": fake}
    for name, value in (parts | {"decoder and judge": feedback}).items():
        print(f"{name:18} {value / 1e9:6.1f} GFLOP per {len(batch)} samples")
    print("| fake-score steps | ours | the authors' | ratio |\n|---|---|---|---|")
    for steps in (1, 2, 3, 5, 10):
        ours = 2 * call_and_back + fixed + steps * fake
        theirs = CALLS_OF_A_STUDENT * (call_and_back + steps * call) + fixed + steps * fake
        print(f"| {steps} | {ours / 1e9:.0f} | {theirs / 1e9:.0f} | {ours / theirs:.2f} |")


if __name__ == "__main__":
    main()

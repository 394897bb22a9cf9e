"""The method in one file: an editor learnt without one before/after pair. Needs only torch; half a minute on a CPU.

A photo here is four numbers: hue (a point on a circle, so two of them), detail and shade, and in real photos the shade
is detail * hue[0]. An instruction asks for one of six hues, or for nothing. A good edit has the asked hue and the old
detail and looks real, so it needs a new shade; but the judge is blind to shades: only the base has seen real photos.

The equations are numbered as in docs/method.md; `nopair.method` has them for images, and the tests compare the two.
"""

import copy
import itertools
import math
import sys

import torch
import torch.nn.functional as F
from torch import nn

HUES = torch.tensor([[math.cos(k * math.pi / 3), math.sin(k * math.pi / 3)] for k in range(6)])
NOTHING, EMPTY = 6, 7  # texts 0 to 5 name a hue
STEPS, SHIFT, GUIDANCE, AUX, BATCH, LEARNING_RATE = 4, 3.0, 1.5, 2, 128, 2e-3


# The equations.


def interpolate(x0, noise, t):  # Eq. 1
    return (1 - t[:, None]) * x0 + t[:, None] * noise


def to_x0(x, v, t):  # Eq. 3
    return x - t[:, None] * v


def guided(cond, uncond, scale):  # Eq. 4
    return lambda x, t: uncond(x, t) + scale * (cond(x, t) - uncond(x, t))


def shift_time(t, shift):  # Eq. 5
    return shift * t / (shift * t + (1 - t))


LEVELS = shift_time(torch.arange(STEPS, 0, -1) / STEPS, SHIFT)  # Eq. 6


def rollout(velocity, noises, levels):  # Eq. 7: the generator, in training and ever after
    x0 = torch.zeros_like(noises[0])
    for noise, t in zip(noises, levels, strict=True):
        x = interpolate(x0, noise, t)
        x0 = to_x0(x, velocity(x, t), t)
    return x0


def judge_loss(yes_minus_no, wants_yes, asked, temperature):  # Eq. 10 and 11
    right_minus_wrong = torch.where(wants_yes, yes_minus_no, -yes_minus_no)
    losses = torch.where(asked, -F.logsigmoid(temperature * right_minus_wrong), 0)
    return losses.sum(1) / asked.sum(1).clamp(min=1)


def denoising_loss(x0, velocity, t, noise):  # Eq. 14
    x0 = x0.detach()
    return (velocity(interpolate(x0, noise, t), t) - (noise - x0)).square().mean(1)


def query_times(u):  # Eq. 15: the same times for asking both scores and for training the fake one
    return 0.02 + 0.96 * shift_time(u, SHIFT)


def dmd_loss(x0, real, fake, t, noise):  # Eq. 16 to 19
    with torch.no_grad():
        x = interpolate(x0, noise, t)
        real_x0, fake_x0 = to_x0(x, real(x, t), t), to_x0(x, fake(x, t), t)
        gap = (fake_x0 - real_x0) / (x0 - real_x0).abs().mean(1, keepdim=True).clamp(min=1e-4)
    return 0.5 * (x0 - (x0 - gap).detach()).square().mean(1)


# The toy parts: data, judge, network.


def photos(hue):
    """Unlabelled photos of the given hues."""
    detail = 2 * torch.rand(len(hue), 1) - 1
    return torch.cat([HUES[hue], detail, detail * HUES[hue][:, :1]], dim=1)


def requests():
    """Photos, instructions, and captions of the wished-for results. To do nothing is to keep the caption."""
    hue = torch.randint(6, (BATCH,))
    text = (hue + torch.randint(1, 6, (BATCH,))) % 6
    text[torch.rand(BATCH) < 0.05] = NOTHING
    return photos(hue), text, torch.where(text == NOTHING, hue, text)


def judge(reference, edited, text):
    """Stands for a vision-language model: logit(Yes) - logit(No), differentiable in `edited`. Is it the hue asked for?
    Is it still the old hue (a good edit wants No)? Is the detail the same? To do nothing: are the photos the same?"""
    nothing = text == NOTHING
    distances = [
        (edited[:, :2] - HUES[text.clamp(max=5)]).norm(dim=1),
        (edited[:, :2] - reference[:, :2]).norm(dim=1),
        (edited[:, 2] - reference[:, 2]).abs() + torch.where(nothing, (edited - reference)[:, :2].norm(dim=1), 0),
    ]
    asked = torch.stack([~nothing, ~nothing, torch.ones_like(nothing)], dim=1)
    wants_yes = torch.tensor([True, False, True]).expand(BATCH, 3)
    return 20 * (0.1 - torch.stack(distances, dim=1)), wants_yes, asked


class Net(nn.Module):
    """A velocity field. Base, student and fake score are copies of one; only the student is shown a reference."""

    def __init__(self, width=128):
        super().__init__()
        sizes = [4 + 1 + 8 + 5, width, width, width]
        hidden = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 4))

    def forward(self, x, t, text, reference=None):
        seen = x.new_zeros(len(x), 5) if reference is None else F.pad(reference, (0, 1), value=1.0)
        return self.layers(torch.cat([x, t[:, None], F.one_hot(text, 8), seen], dim=1))

    def on(self, *conditions):
        """The field v(x, t) with its conditions bound."""
        return lambda x, t: self(x, t, *conditions)


# The three stages.


def descend(optimizer, loss):
    optimizer.zero_grad(set_to_none=True)
    loss.mean().backward()
    optimizer.step()


def noise_and_times():
    return query_times(torch.rand(BATCH)), torch.randn(BATCH, 4)


def pretrain(steps):
    """The text-to-image base, which a real run downloads: captioned photos, captions dropped at times for guidance."""
    base = Net()
    optimizer = torch.optim.Adam(base.parameters(), lr=LEARNING_RATE)
    for _ in range(steps):
        hue = torch.randint(6, (BATCH,))
        text = torch.where(torch.rand(BATCH) < 0.1, EMPTY, hue)
        descend(optimizer, denoising_loss(photos(hue), base.on(text), *noise_and_times()))
    return base


def warm_up(base, steps):
    """Teach a copy of the base to use a reference: flow matching onto the reference itself."""
    student = copy.deepcopy(base)
    optimizer = torch.optim.Adam(student.parameters(), lr=LEARNING_RATE)
    for _ in range(steps):
        reference, text, _ = requests()
        descend(optimizer, denoising_loss(reference, student.on(text, reference), *noise_and_times()))
    return student


def train(base, student, steps, judge_weight=0.05, dmd_weight=1.0):
    """The judge says whether the edit is right, the base (as teacher) whether the result looks like a real photo."""
    student, fake = copy.deepcopy(student), copy.deepcopy(base)
    student_optimizer = torch.optim.Adam(student.parameters(), lr=LEARNING_RATE, betas=(0.0, 0.9))
    fake_optimizer = torch.optim.Adam(fake.parameters(), lr=2 * LEARNING_RATE, betas=(0.0, 0.9))

    def generate(reference, text):  # Eq. 8: two calls, the second at a random level of the schedule
        levels = torch.stack([torch.ones(BATCH), LEVELS[torch.randint(STEPS, (BATCH,))]])
        return rollout(student.on(text, reference), torch.randn(2, BATCH, 4), levels)

    for step in range(steps):
        for _ in range(AUX):  # the fake score follows what the student makes
            reference, text, caption = requests()
            with torch.no_grad():
                x0 = generate(reference, text)
            descend(fake_optimizer, denoising_loss(x0, fake.on(caption), *noise_and_times()))

        reference, text, caption = requests()
        teacher = guided(base.on(caption), base.on(torch.full_like(caption, EMPTY)), GUIDANCE)
        x0 = generate(reference, text)
        verdict = judge_loss(*judge(reference, x0, text), temperature=min(1.0, 0.1 + 0.9 * 4 * step / steps))  # Eq. 13
        realism = dmd_loss(x0, teacher, fake.on(caption), *noise_and_times())
        descend(student_optimizer, judge_weight * verdict + dmd_weight * realism)  # Eq. 23
    return student


@torch.no_grad()
def score(student, batches=16):
    """Fractions of edits with the right hue, the old detail, a real shade, and all three; four steps each (Eq. 9)."""
    parts = []
    for _ in range(batches):
        reference, text, caption = requests()
        x0 = rollout(student.on(text, reference), torch.randn(STEPS, BATCH, 4), LEVELS[:, None].expand(-1, BATCH))
        off = (x0[:, :2] - HUES[caption]).norm(dim=1), x0[:, 2] - reference[:, 2], x0[:, 3] - x0[:, 2] * x0[:, 0]
        parts.append(torch.stack(off).abs() < 0.25)
    edited, kept, real = torch.cat(parts, dim=1)
    rows = {"edited": edited, "kept": kept, "real": real, "success": edited & kept & real}
    return {name: hits.float().mean().item() for name, hits in rows.items()}


def main(effort):
    torch.manual_seed(0)
    base = pretrain(int(1500 * effort))
    student = warm_up(base, int(500 * effort))
    report("warmed up", student)
    report("trained", train(base, student, int(800 * effort)))
    report("only judge", train(base, student, int(800 * effort), dmd_weight=0.0))
    report("only DMD", train(base, student, int(800 * effort), judge_weight=0.0))


def report(name, student):
    print(f"{name:>10}  " + "  ".join(f"{part} {value:.2f}" for part, value in score(student).items()), flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)

"""NP-Edit in one file: an image editor learnt without a single before/after pair. Needs only torch; half a minute on a CPU.

A photo here is four numbers: hue (two of them, a point on a circle), detail, shade. In real photos shade = detail * hue[0].
An instruction asks for one of six hues, or for nothing. A good edit has the asked hue, the same detail, and looks real, so
it must work out a new shade. Nobody tells the editor so: the judge looks at hue and detail, only the base knows shades.
The equations are those of docs/method.md, where `nopair.method` has them for real images; the tests compare the two.
"""

import copy
import math
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HUES = torch.tensor([[math.cos(k * math.pi / 3), math.sin(k * math.pi / 3)] for k in range(6)])
NOTHING, EMPTY = 6, 7  # texts 0..5 name a hue
STEPS, SHIFT, BATCH, AUX = 4, 3.0, 256, 3
LEARNING_RATE, GUIDANCE = 1e-3, 1.5


def photos(hue: Tensor) -> Tensor:
    """Unlabelled photos of the given hues."""
    detail = 2 * torch.rand(len(hue), 1) - 1
    return torch.cat([HUES[hue], detail, detail * HUES[hue][:, :1]], dim=1)


class Net(nn.Module):
    """Velocity v(x, t | text, reference). Base, student and fake score are copies of one net; only the student is given a
    reference."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4 + 1 + 8 + 5, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 4),
        )  # fmt: skip

    def forward(self, x: Tensor, t: Tensor, text: Tensor, reference: Tensor | None = None) -> Tensor:
        seen = torch.zeros(len(x), 5) if reference is None else F.pad(reference, (0, 1), value=1.0)
        return self.layers(torch.cat([x, t[:, None], F.one_hot(text, 8), seen], dim=1))


def interpolate(x0, noise, t):  # Eq. 1
    return (1 - t[:, None]) * x0 + t[:, None] * noise


def to_x0(x, v, t):  # Eq. 3
    return x - t[:, None] * v


def shift_time(t, shift):  # Eq. 5
    return shift * t / (1 + (shift - 1) * t)


LEVELS = shift_time(torch.arange(STEPS, 0, -1) / STEPS, SHIFT)  # Eq. 6


def rollout(velocity, noises, levels):  # Eq. 7: the generator, in training and ever after
    x0 = torch.zeros_like(noises[0])
    for noise, t in zip(noises, levels, strict=True):
        x = interpolate(x0, noise, t)
        x0 = to_x0(x, velocity(x, t), t)
    return x0


def judge_loss(yes_minus_no, wants_yes, asked, temperature):  # Eq. 10-11
    right_minus_wrong = torch.where(wants_yes, yes_minus_no, -yes_minus_no)
    losses = torch.where(asked, -F.logsigmoid(temperature * right_minus_wrong), 0)
    return losses.sum(1) / asked.sum(1).clamp(min=1)


def denoising_loss(x0, velocity, t, noise):  # Eq. 14
    x0 = x0.detach()
    return (velocity(interpolate(x0, noise, t), t) - (noise - x0)).square().mean(1)


def query_times(count):  # Eq. 15: the same times for asking the scores and for training the fake one
    return 0.02 + 0.96 * shift_time(torch.rand(count), SHIFT)


def dmd_loss(x0, real, fake, t, noise):  # Eq. 16-19
    with torch.no_grad():
        x = interpolate(x0, noise, t)
        real_x0, fake_x0 = to_x0(x, real(x, t), t), to_x0(x, fake(x, t), t)
        gap = (fake_x0 - real_x0) / (x0 - real_x0).abs().mean(1, keepdim=True).clamp(min=1e-4)
    return 0.5 * (x0 - (x0 - gap).detach()).square().mean(1)


def judge(reference, edited, text):
    """The vision-language model: answers with logit(Yes) - logit(No) and is differentiable in `edited`. It is asked: has it
    the hue that was asked for? Is it still the old hue (the right answer is No)? Is the detail the same? To do nothing, it
    is asked only whether the two photos are the same."""
    nothing = text == NOTHING
    distance = torch.stack([
        (edited[:, :2] - HUES[text.clamp(max=5)]).norm(dim=1),
        (edited[:, :2] - reference[:, :2]).norm(dim=1),
        torch.where(nothing, (edited[:, :3] - reference[:, :3]).norm(dim=1), (edited[:, 2] - reference[:, 2]).abs()),
    ], dim=1)  # fmt: skip
    asked = torch.stack([~nothing, ~nothing, torch.ones_like(nothing)], dim=1)
    wants_yes = torch.tensor([True, False, True]).expand(len(text), 3)
    return 20 * (0.1 - distance), wants_yes, asked


def requests(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Photos, instructions, captions of the wished-for results. Doing nothing keeps the caption: all losses agree on it."""
    hue = torch.randint(6, (count,))
    text = (hue + torch.randint(1, 6, (count,))) % 6
    text[torch.rand(count) < 0.05] = NOTHING
    return photos(hue), text, torch.where(text == NOTHING, hue, text)


def pretrain(net: Net, steps: int) -> Net:
    """The text-to-image base, which a real run downloads: captioned photos, captions dropped at times for guidance."""
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    for _ in range(steps):
        hue = torch.randint(6, (BATCH,))
        text = torch.where(torch.rand(BATCH) < 0.1, EMPTY, hue)
        loss = denoising_loss(photos(hue), lambda x, t, text=text: net(x, t, text), query_times(BATCH), torch.randn(BATCH, 4))
        update(optimizer, loss.mean())
    return net


def warm_up(net: Net, steps: int) -> Net:
    """Teach a copy of the base to use its reference: flow matching onto the reference itself."""
    student = copy.deepcopy(net)
    optimizer = torch.optim.Adam(student.parameters(), lr=LEARNING_RATE)
    for _ in range(steps):
        reference, text, _ = requests(BATCH)
        loss = denoising_loss(
            reference, lambda x, t, y=reference, c=text: student(x, t, c, y), query_times(BATCH), torch.randn(BATCH, 4)
        )
        update(optimizer, loss.mean())
    return student


def train(base: Net, student: Net, steps: int, judge_weight: float = 0.1, dmd_weight: float = 1.0) -> Net:
    """The method: the judge says whether the edit is right, the base whether the result looks real."""
    student, fake = copy.deepcopy(student), copy.deepcopy(base)
    student_optimizer = torch.optim.Adam(student.parameters(), lr=LEARNING_RATE / 2, betas=(0.0, 0.9))
    fake_optimizer = torch.optim.Adam(fake.parameters(), lr=LEARNING_RATE, betas=(0.0, 0.9))

    def generate(reference: Tensor, text: Tensor) -> Tensor:
        stop = torch.randint(STEPS, (BATCH,))
        levels = torch.stack([torch.ones(BATCH), LEVELS[stop]])  # Eq. 8
        return rollout(lambda x, t: student(x, t, text, reference), torch.randn(2, BATCH, 4), levels)

    for step in range(steps):
        for _ in range(AUX):
            reference, text, caption = requests(BATCH)
            with torch.no_grad():
                x0 = generate(reference, text)
            loss = denoising_loss(x0, lambda x, t, c=caption: fake(x, t, c), query_times(BATCH), torch.randn(BATCH, 4))
            update(fake_optimizer, loss.mean())

        reference, text, caption = requests(BATCH)
        x0 = generate(reference, text)

        def teacher(x: Tensor, t: Tensor, caption: Tensor = caption) -> Tensor:  # Eq. 4
            unconditional = base(x, t, torch.full_like(caption, EMPTY))
            return unconditional + GUIDANCE * (base(x, t, caption) - unconditional)

        temperature = min(1.0, 0.1 + 0.9 * step / (steps / 4))  # Eq. 13
        losses = judge_weight * judge_loss(*judge(reference, x0, text), temperature) + dmd_weight * dmd_loss(
            x0, teacher, lambda x, t, c=caption: fake(x, t, c), query_times(BATCH), torch.randn(BATCH, 4)
        )
        update(student_optimizer, losses.mean())  # Eq. 22
    return student


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


@torch.no_grad()
def score(student: Net, count: int = 2000) -> dict[str, float]:
    """What a person would see: fractions of edits done, details kept, shades real; and of edits with all three."""
    reference, text, caption = requests(count)
    levels = LEVELS[:, None].expand(-1, count)  # Eq. 9
    x0 = rollout(lambda x, t: student(x, t, text, reference), torch.randn(STEPS, count, 4), levels)
    edited = (x0[:, :2] - HUES[caption]).norm(dim=1) < 0.25
    kept = (x0[:, 2] - reference[:, 2]).abs() < 0.25
    real = (x0[:, 3] - x0[:, 2] * x0[:, 0]).abs() < 0.25
    parts = {"edited": edited, "kept": kept, "real": real, "success": edited & kept & real}
    return {name: part.float().mean().item() for name, part in parts.items()}


def run(effort: float = 1.0) -> dict[str, dict[str, float]]:
    """Scores before and after training, and after training without the base's or the judge's part of the loss."""
    torch.manual_seed(0)
    base = pretrain(Net(), int(2000 * effort))
    student = warm_up(base, int(1000 * effort))
    steps = int(800 * effort)
    return {
        "after warm-up": score(student),
        "trained": score(train(base, student, steps)),
        "only judge": score(train(base, student, steps, dmd_weight=0.0)),
        "only DMD": score(train(base, student, steps, judge_weight=0.0)),
    }


if __name__ == "__main__":
    for row, scores in run(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0).items():
        print(f"{row:>14}  " + "  ".join(f"{name} {value:.2f}" for name, value in scores.items()))

"""A trained editor: an image and an instruction in, the edited image out."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from nopair.backbones.base import StoredBackbone
from nopair.backbones.folder import stored_dtype
from nopair.backbones.load import load_backbone
from nopair.data.files import folder_atomic
from nopair.data.images import Fitted, fit, load_image, restore, save_image
from nopair.data.jobs import Job, require_instruction
from nopair.device import enough_memory
from nopair.errors import ConfigError, InstructionError, ModelError, NopairError
from nopair.method.flow import levels
from nopair.method.rollout import rollout, sampler_levels
from nopair.precision import Bits
from nopair.weights import resolve

SETTINGS_FILE: Final = "nopair.json"
"""What makes a pipeline folder an editor."""

SMALLER: Final = (
    "open the editor in half precision (dtype bf16), quantised (nopair edit --bits 4) or on another device "
    "(--device cpu)"
)

Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """How an editor was trained, and so how it must be run: the contents of nopair.json.

    `steps` and `shift` are the noise schedule (`nopair.method.flow.levels`), `height` and `width` the size in pixels it
    edits at, `questions` the version of the question set it was trained under, `judges` the names of the judges that it
    was trained under, as far as is known.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    steps: Count
    shift: Annotated[float, Field(gt=0)]
    height: Count
    width: Count
    questions: Annotated[str, Field(min_length=1)]
    judges: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Editor:
    """A backbone whose transformer was trained to edit, with the schedule it was trained on."""

    backbone: StoredBackbone
    settings: Settings

    @classmethod
    def load(
        cls,
        model: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        bits: Bits | None = None,
    ) -> "Editor":
        """Read an editor: a diffusers pipeline folder with a nopair.json, or "tiny:editor".

        `dtype` is that of weights and computation: where it is None, `usual_dtype`. With `bits`, the matrices of
        transformer and text encoders are quantised while they are read, as in training with `base.bits`.

        Raises:
            ModelError: no such folder, not an editor, or a part of it is missing or unreadable; or `bits` without GPU.
            ConfigError: `bits` on a CPU.
            MissingExtraError: `bits` without bitsandbytes.
            MemoryShortError: it does not fit the device.
        """
        folder = resolve(str(model))
        settings = read_settings(folder)
        if bits is not None and torch.device(device).type == "cpu":
            raise ConfigError(f"bits {bits} quantises on a CUDA GPU, and the device is {device}; leave bits out")
        with enough_memory(SMALLER):
            backbone = load_backbone(folder, dtype or usual_dtype(folder, device), bits).to(device)
        return cls(backbone, settings)

    def save(self, folder: Path) -> None:
        """Write what `load` reads, complete or not at all; an editor that was in `folder` is replaced.

        Raises:
            OutputError: `folder` cannot be written or holds something that is not an editor.
        """
        with folder_atomic(folder, marker=SETTINGS_FILE) as part:
            self.write(part)

    def write(self, folder: Path) -> None:
        """Write what `load` reads into an existing folder, file by file.

        Raises:
            OutputError: the model cannot be written.
        """
        self.backbone.save(folder)
        (folder / SETTINGS_FILE).write_text(self.settings.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def with_steps(self, steps: int) -> "Editor":
        """The same editor at another number of sampling steps than it was trained for: seldom better."""
        return dataclasses.replace(self, settings=self.settings.model_copy(update={"steps": steps}))

    @property
    def levels(self) -> Float[Tensor, " step"]:
        """The noise levels of the sampler, 1 first."""
        return levels(self.settings.steps, self.settings.shift)

    @torch.no_grad()
    def edit(
        self, reference: Float[Tensor, "batch 3 height width"], instructions: Sequence[str], seeds: Sequence[int]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Edit images of the size in `settings`; pixels in [0, 1] in and out, on the device they came from.

        The noise of sample i depends on seeds[i] alone, so its result does not depend on the batch it is in, but for
        the rounding of floating-point sums, whose order differs between batch sizes.

        Raises:
            InstructionError: an instruction is empty, or longer than what the editor reads.
            MemoryShortError: so many at a time do not fit the device.
        """
        if not len(reference) == len(instructions) == len(seeds):
            raise ValueError(
                f"{len(reference)} images, {len(instructions)} instructions and {len(seeds)} seeds do not pair up"
            )
        size = (self.settings.height, self.settings.width)
        if reference.shape[2:] != size:
            raise ValueError(
                f"this editor works on {size} pixels, got {tuple(reference.shape[2:])}; edit_image takes any"
            )
        if not len(reference):
            return reference.clone()
        with enough_memory("edit fewer images at a time (--batch 1), or on another device (--device cpu)"):
            return self._edited(reference, instructions, seeds)

    def edit_image(
        self, image: Float[Tensor, "3 rows columns"], instruction: str, seed: int = 0
    ) -> Float[Tensor, "3 rows columns"]:
        """Edit one image of any size; pixels in [0, 1] in and out. It is brought to the size in `settings` and back.

        Raises:
            InstructionError: the instruction is empty, or longer than what the editor reads.
            MemoryShortError: it does not fit the device.
        """
        fitted = fit(image, self.settings.height, self.settings.width)
        return restore(self.edit(fitted.pixels[None], [instruction], [seed])[0], fitted)

    def _require_read(self, instruction: str) -> None:
        tokens, most = self.backbone.prompt_tokens(instruction)
        if tokens > most:
            raise InstructionError(
                f"the instruction {instruction[:40]!r}... takes {tokens} tokens, this editor reads {most}; shorten it"
            )

    def _edited(
        self, reference: Float[Tensor, "batch 3 height width"], instructions: Sequence[str], seeds: Sequence[int]
    ) -> Float[Tensor, "batch 3 height width"]:
        size = (self.settings.height, self.settings.width)
        for instruction in instructions:
            self._require_read(require_instruction(instruction))
        text = self.backbone.encode_text(instructions)
        device = next(self.backbone.transformer.parameters()).device
        clean = self.backbone.encode_image(reference.to(device))
        noises = _noises(seeds, self.settings.steps, self.backbone.latent_shape(*size)).to(clean)

        def velocity(noisy: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
            return self.backbone.velocity(noisy, t, text, clean)

        latents = rollout(velocity, noises, sampler_levels(self.levels.to(device), len(reference)))
        return self.backbone.decode_latents(latents.to(clean)).clamp(0, 1).to(reference)


def _noises(seeds: Sequence[int], steps: int, shape: tuple[int, int, int]) -> Float[Tensor, "step batch c h w"]:
    """Drawn on the CPU, so that a seed means the same on every device; and level by level, so that its first noise does
    not depend on the number of steps.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack(
        [torch.stack([torch.randn(shape, generator=generator) for generator in generators]) for _ in range(steps)]
    )


def is_editor(folder: Path) -> bool:
    """Whether a model folder is that of an editor."""
    return (folder / SETTINGS_FILE).is_file()


def usual_dtype(folder: Path, device: torch.device | str) -> torch.dtype:
    """What an editor is opened in where nobody says: float32 on a CPU, which is slow in half precision; else as its
    transformer is stored.

    Raises:
        ModelError: that cannot be found out.
    """
    return torch.float32 if torch.device(device).type == "cpu" else stored_dtype(folder / "transformer")


def read_settings(folder: Path) -> Settings:
    """What an editor's folder says of it.

    Raises:
        ModelError: it is no editor, or its settings are unreadable.
    """
    path = folder / SETTINGS_FILE
    try:
        return Settings.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{folder}: no {SETTINGS_FILE}, so not an editor; train one, or use tiny:editor") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        problems = f"{key}: {problem['msg']}" if key else problem["msg"]
        raise ModelError(f"{path}: not the settings of an editor ({problems}); copy the model folder again") from error


def run_jobs(editor: Editor, jobs: Sequence[Job], batch: int) -> Iterator[tuple[Job, NopairError | None]]:
    """Make the edits, `batch` images at a time, and write each result; yields every job with what went wrong, or None.

    Images of any size go in and come out at their own size. One bad job never costs another its result.
    """
    for start in range(0, len(jobs), batch):
        loaded: list[tuple[Job, Fitted]] = []
        for job in jobs[start : start + batch]:
            try:
                loaded.append((job, fit(load_image(job.image), editor.settings.height, editor.settings.width)))
            except NopairError as error:
                yield job, error
        if loaded:
            yield from _edit_loaded(editor, loaded)


def _edit_loaded(editor: Editor, loaded: list[tuple[Job, Fitted]]) -> Iterator[tuple[Job, NopairError | None]]:
    try:
        edited = editor.edit(
            torch.stack([fitted.pixels for _, fitted in loaded]),
            [job.instruction for job, _ in loaded],
            [job.seed for job, _ in loaded],
        )
    except NopairError as error:
        if len(loaded) == 1:
            yield loaded[0][0], error
        else:  # find out whose error it is
            for one in loaded:
                yield from _edit_loaded(editor, [one])
        return
    for (job, fitted), pixels in zip(loaded, edited, strict=True):
        try:
            save_image(restore(pixels, fitted), job.output)
        except NopairError as error:
            yield job, error
        else:
            yield job, None

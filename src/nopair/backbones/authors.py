"""Reads the student that the authors of NP-Edit publish: huggingface.co/nupurkmr9/npedit, zimage_npedit_internvl.pt.

Read from their code (github.com/nupurkmr9/npedit at a3cd76c: scripts/edit.py, models/zimage_denoiser.py), which loads
the file strictly: it is a flat mapping of tensors, the whole state of a module whose only part is diffusers'
ZImageTransformer2DModel under the name `transformer`. So all names are diffusers' own after `transformer.`.

How it must be run, in their words and numbers: levels 1, 0.9474, 0.8571, 0.6667, which are four uniform ones shifted by
6; images of 512 pixels; the instruction as the prompt, without thinking; the reference as `frames` (see
`nopair.backbones.zimage_reference`).

Where running it here differs from their script: our sampler noises x0 anew at each level, as their training does and
their script does not (it keeps a part of the predicted noise); we tell the time in float32, they round it to bfloat16
(at most 0.4 % off); and levels are not rounded to four places. Padding is attended to, as by the attention kernel which
their instructions install, and which takes no mask.
"""

import pickle  # noqa: TID251 - only for the error that torch.load raises
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
from torch import Tensor

from nopair.backbones.folder import read_pipeline
from nopair.backbones.zimage import FAMILY
from nopair.backbones.zimage_reference import Dialect
from nopair.errors import ModelError

PREFIX: Final = "transformer."
STEPS: Final = 4
SHIFT: Final = 6.0
SIZE: Final = 512
QUESTIONS: Final = "npedit"
"""Stands for the authors' own questions, which are not among ours."""
DIALECT: Final = Dialect(reference="frames", thinking=False)


def read_student(checkpoint: Path, base: Path) -> ZImageTransformer2DModel:
    """The published student as a transformer of `base`'s configuration, in eval mode and in the file's own dtypes.

    `base` is a folder of the Z-Image it was trained from. The weights stay on disk until they are used.

    Raises:
        ModelError: `base` is no Z-Image folder, the file is unreadable or not of the published layout, or the two do
            not fit each other.
    """
    read_pipeline(base, family=FAMILY)
    weights = _read(checkpoint)
    transformer = _empty(base / "transformer")
    wanted = {PREFIX + name: tuple(tensor.shape) for name, tensor in transformer.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    _require_same(checkpoint, wanted, found)
    state = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    transformer.load_state_dict(state, assign=True)
    return transformer.eval()


def _read(path: Path) -> dict[str, Tensor]:
    """A file of torch.save that holds tensors by name, and nothing else."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give the path of the authors' checkpoint, zimage_npedit_internvl.pt")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path}: is not a torch file, or holds more than tensors, which is not read: it could run code"
        ) from None
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
        raise ModelError(f"{path}: cannot be read ({line}); download it again") from None
    if not isinstance(content, Mapping):
        raise ModelError(f"{path}: holds a {type(content).__name__}, but tensors by name were expected")
    other = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if other or not content:
        names = ", ".join(other[:4]) or "nothing"
        raise ModelError(f"{path}: holds {names}, but only tensors named {PREFIX}... were expected")
    return {str(name): value for name, value in content.items()}


def _empty(folder: Path) -> ZImageTransformer2DModel:
    """A transformer without memory for its weights."""
    try:
        config: Any = ZImageTransformer2DModel.load_config(str(folder), local_files_only=True)
        with torch.device("meta"):
            transformer: Any = ZImageTransformer2DModel.from_config(config)
    except (OSError, ValueError, TypeError) as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
        raise ModelError(f"{folder}: no readable config.json ({line}); copy the folder again") from None
    return transformer


def _require_same(path: Path, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    """Every name and every shape, or a line that says what differs first."""
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if len(missing) == len(wanted):
        raise ModelError(f"{path}: names of another layout, {unknown[0]} first; {PREFIX}... was expected")
    if missing or unknown:
        first = f"{missing[0]} is missing" if missing else f"{unknown[0]} is unknown"
        raise ModelError(f"{path}: {len(missing)} weights are missing and {len(unknown)} unknown; {first}")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise ModelError(f"{path}: {name} has the shape {found[name]}, this base needs {shape}")

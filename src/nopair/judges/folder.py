"""Read the parts of a judge's checkpoint folder, turning every way it can be broken into one `ModelError` line.

Only local files and only safetensors are read, and no code from the folder is run.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from nopair.errors import ModelError
from nopair.precision import Bits, Precision, quantisation, refuse_quantised
from nopair.surplus import surplus_layers
from nopair.tokenizer import read_chat_tokenizer
from nopair.weights import PREFIX, resolve

ON_CPU: Final[tuple[Bits, ...]] = (8,)
"""Not 4: bitsandbytes repacks NF4 weights for a CPU where a pass wants no gradient, and then they give none."""


@dataclass(frozen=True)
class Parts:
    """A frozen model in eval mode, its tokenizer and its image processor, of the classes that were asked for."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    processor: Any


def family_of(folder: Path) -> str | None:
    """The `model_type` of a checkpoint folder; None if its config.json names none.

    Raises:
        ModelError: there is no readable config.json.
    """
    config = _config(folder)
    family = config.get("model_type") if isinstance(config, dict) else None
    return family if isinstance(family, str) else None


def _config(folder: Path) -> object:
    path = folder / "config.json"
    if not path.is_file():
        drawn = (folder / "model_index.json").is_file()
        found = "it is a base or an editor, a diffusers pipeline" if drawn else f"{path.name} is missing"
        raise ModelError(f"there is no judge in {folder}: {found}; give a Hugging Face checkpoint folder")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({_first_line(error)}); copy it again") from error


def named(path: str) -> str:
    """A judge's name, without the folders it lies in, with the family that its own folder tells if it is there."""
    name = path if path.startswith(PREFIX) else Path(path).name
    try:
        family = family_of(resolve(path))
    except ModelError:
        return name
    return name if family is None else f"{name} ({family})"


def load_parts(
    folder: Path, model_class: type[PreTrainedModel], processor_class: Any, precision: Precision, plain: tuple[str, ...]
) -> Parts:
    """Load a checkpoint of the family of `model_class`, every weight of it from the files, and no layer left out.

    Args:
        folder: an ordinary checkpoint: safetensors weights, tokenizer, image processor, chat template.
        model_class: the family's model.
        processor_class: its image processor that works without torchvision.
        precision: of the weights.
        plain: parts of the model that are never quantised, by their full names.

    Raises:
        ModelError: the folder is missing, incomplete, of another family, or holds quantised weights; or 4-bit weights
            find no GPU.
        MissingExtraError: quantised weights are wanted without bitsandbytes.
    """
    config_class: Any = model_class.config_class
    family, needed = family_of(folder), config_class.model_type
    if family != needed:
        raise ModelError(f"the judge in {folder} is of the family {family!r}, but {needed!r} is needed")
    refuse_quantised(_config(folder), f"the judge in {folder}")
    quantised = quantisation(BitsAndBytesConfig, precision, ("lm_head", *plain), f"the judge in {folder}", ON_CPU)
    try:
        loaded: Any = model_class.from_pretrained(
            folder,
            dtype=precision.dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, in one line
            **quantised,
        )
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        SafetensorError,
        StrictDataclassError,
    ) as error:
        raise ModelError(f"cannot load the judge in {folder}: {_first_line(error)}; copy the folder again") from error
    model, loading = loaded
    _require_weights(folder, model, loading)
    tokenizer = read_chat_tokenizer(folder)
    return Parts(model.requires_grad_(False).eval(), tokenizer, _read_processor(folder, processor_class))


def _read_processor(folder: Path, kind: Any) -> Any:
    try:
        processor = kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise ModelError(
            f"cannot load the image processor of the judge in {folder}: {_first_line(error)}; copy the folder again"
        ) from error
    if processor.size is None:
        raise ModelError(f"the judge's image processor in {folder} has no size; copy preprocessor_config.json again")
    return processor


def _require_weights(folder: Path, model: Any, loading: dict) -> None:
    """The library fills missing weights with random numbers, and drops surplus layers; a judge must not guess."""
    missing = set(loading["missing_keys"])
    other_shape = {name for name, *_shapes in loading["mismatched_keys"]}
    if missing or other_shape:
        problem = "lacks weights" if missing else "has weights of other shapes than its config.json says"
        name = min(missing or other_shape)
        raise ModelError(f"the judge in {folder} {problem}, e.g. {name}; copy the folder again")
    surplus = surplus_layers(model, set(loading["unexpected_keys"]))
    if surplus:
        raise ModelError(
            f"the judge in {folder} has more layers than its config.json says, e.g. {surplus[0]}; copy the folder again"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]

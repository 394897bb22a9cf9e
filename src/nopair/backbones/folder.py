"""Read and write diffusers pipeline folders, turning every way they can be broken into one line of a user error.

Only local files and only safetensors are read.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
import transformers
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nopair.device import lacks_memory
from nopair.errors import ModelError, OutputError
from nopair.method.flow import levels
from nopair.precision import Bits, Precision, quantisation, refuse_quantised
from nopair.surplus import surplus_layers
from nopair.tokenizer import read_tokenizer

NEVER_QUANTISED = ("lm_head", "proj_out", "all_final_layer")
"""Small matrices right at the output, whose rounding nothing after them can make good. (The last one is Z-Image's.)"""
Model = TypeVar("Model", bound=ModelMixin | PreTrainedModel)


def pipeline_class(folder: Path) -> str:
    """What class of diffusers pipeline `folder` says it is.

    Raises:
        ModelError: no such folder, or no readable model_index.json.
    """
    return _index(folder)["_class_name"]


def read_pipeline(folder: Path, family: str) -> Mapping[str, Any]:
    """Check that `folder` says it is a diffusers pipeline of class `family`; what its model_index.json says.

    Raises:
        ModelError: no such folder, no readable model_index.json, or another pipeline class.
    """
    index = _index(folder)
    if index["_class_name"] != family:
        raise ModelError(f"{folder}: holds a {index['_class_name']}, but a {family} is needed here")
    return index


def _index(folder: Path) -> dict[str, Any]:
    """What model_index.json says, a pipeline class among it. Raises ModelError."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such model folder; give the path of a diffusers pipeline folder")
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        judge = " (a config.json is there: it may be a judge)" if (folder / "config.json").is_file() else ""
        raise ModelError(f"{folder}: no model_index.json, so not a diffusers pipeline folder{judge}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}/model_index.json: cannot be read ({_line(error)})") from None
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise ModelError(f"{folder}/model_index.json: names no pipeline class; copy the folder again")
    return index


def load_model(kind: type[Model], folder: Path, dtype: torch.dtype, bits: Bits | None = None) -> Model:
    """Load one model of a pipeline in eval mode, every tensor of it from the file.

    Transformers and autoencoders must have a place for every tensor of the file, too; text encoders, of which folders
    may hold a whole language model, at least for every layer.

    Raises:
        ModelError: folder, config or weights are missing, unreadable, or do not fit each other; or the weights are
            quantised already; or `bits` without GPU.
        MissingExtraError: `bits` without bitsandbytes.

    What a device without memory raises passes: see `nopair.device.enough_memory`.
    """
    _require(folder, "config.json")
    refuse_quantised(_json(folder / "config.json"), f"the model in {folder}")
    library: Any = diffusers.BitsAndBytesConfig if issubclass(kind, ModelMixin) else transformers.BitsAndBytesConfig
    quantised = quantisation(library, Precision(dtype, bits), NEVER_QUANTISED, f"the model in {folder}", ())
    try:
        loaded: Any = kind.from_pretrained(
            str(folder), torch_dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True,
            **quantised,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        if lacks_memory(error):
            raise
        raise ModelError(f"{folder}: cannot load the {kind.__name__} ({_line(error)}); copy the folder again") from None
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(f"{folder}: {len(missing)} weights are missing, {missing[0]} first; copy the folder again")
    unexpected = report["unexpected_keys"]
    surplus = sorted(unexpected) if issubclass(kind, ModelMixin) else surplus_layers(model, set(unexpected))
    if surplus:
        raise ModelError(
            f"{folder}: {len(surplus)} weights have no place in the model that config.json describes, {surplus[0]} "
            "first; copy the folder again"
        )
    return model.eval()


def stored_dtype(folder: Path) -> torch.dtype:
    """The floating-point type in which a model's folder holds the most numbers; its weights are not read.

    Raises:
        ModelError: the folder holds no readable safetensors weights, or none in float32, bfloat16 or float16.
    """
    known = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    counts = dict.fromkeys(known, 0)
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for one in (file.get_slice(name) for name in file.keys()):  # noqa: SIM118 (it is no dict)
                    counts[one.get_dtype()] = counts.get(one.get_dtype(), 0) + math.prod(one.get_shape())
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path}: cannot be read ({_line(error)}); copy the folder again") from None
    most = max(known, key=counts.__getitem__)
    if not counts[most]:
        raise ModelError(f"{folder}: no safetensors weights in float32, bfloat16 or float16; copy the folder again")
    return known[most]


def drop_weights(model: nn.Module) -> None:
    """Free a model's memory, whoever still holds it: what is in it goes, and it cannot be called any more.

    Moving it to the meta device would not do for quantised weights, which keep a second hold on their numbers.
    """
    for name, _ in list(model.named_children()):
        delattr(model, name)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer that has a chat template.

    Raises:
        ModelError: it is missing, unreadable, or has no chat template.
    """
    _require(folder, "tokenizer_config.json")
    if not (folder / "tokenizer.json").is_file():
        _require(folder, "vocab.json")  # without either the library makes up an empty vocabulary
    tokenizer = read_tokenizer(folder)
    if tokenizer.chat_template is None:
        raise ModelError(f"{folder}: the tokenizer has no chat template; add the family's chat_template.jinja")
    return tokenizer


def load_scheduler(folder: Path) -> FlowMatchEulerDiscreteScheduler:
    """Load a flow-matching scheduler, whatever its settings.

    Raises:
        ModelError: it is missing or unreadable.
    """
    _require(folder, "scheduler_config.json")
    try:
        scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise ModelError(f"{folder}: cannot load the scheduler ({_line(error)}); copy the folder again") from None
    return scheduler


def load_shift(folder: Path) -> float:
    """The constant time shift of a flow-matching scheduler.

    Raises:
        ModelError: it is missing, unreadable, or shifts by image size instead of by a constant.
    """
    scheduler = load_scheduler(folder)
    if scheduler.config["use_dynamic_shifting"]:
        raise ModelError(f"{folder}: dynamic shifting is not supported; set use_dynamic_shifting false and a shift")
    return float(scheduler.config["shift"])


def require_exponential_shift(scheduler: FlowMatchEulerDiscreteScheduler, folder: Path) -> None:
    """Try a scheduler: whichever of its many settings is unusual, it must shift times by exp(mu).

    Raises:
        ModelError: it does anything else; `folder` is where it came from.
    """
    steps, mu = 4, 1.5
    trial: Any = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
    trial.set_timesteps(sigmas=levels(steps, 1.0).tolist(), mu=mu)
    expected = levels(steps, math.exp(mu))
    if not all(torch.allclose(times, expected) for times in (trial.sigmas[:-1], trial.timesteps / 1000)):
        raise ModelError(
            f"{folder}: the scheduler does not shift times by exp(mu); set use_dynamic_shifting true and "
            "time_shift_type exponential, and leave out what else changes sigmas"
        )


def save_pipeline(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Write a pipeline as an ordinary diffusers folder, in its modules' own dtypes.

    Raises:
        OutputError: the folder cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file, not a folder; choose another place for the model")
    with saving(folder):
        pipeline.save_pretrained(folder, safe_serialization=True)
        for part in ("vae", "transformer"):
            _forget_origin(folder / part / "config.json")


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Inside, a model is written into `folder` by the libraries' own `save_pretrained`.

    Raises:
        OutputError: it cannot be.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # the second is how a full disk shows while tensors are written
        reason = (error.strerror if isinstance(error, OSError) else None) or _line(error)
        raise OutputError(f"{folder}: cannot write the model ({reason}); check space and rights") from None


def _forget_origin(path: Path) -> None:
    """Take out of a config where its model was loaded from: a folder of this machine is no business of others."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _require(folder: Path, name: str) -> None:
    if not (folder / name).is_file():
        raise ModelError(f"{folder}: no {name}; the model folder is incomplete, copy it again")


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({_line(error)}); copy the folder again") from None


def _line(error: Exception) -> str:
    """The first line of an error's text, short enough to stay on one line."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__

"""Any editing pipeline of diffusers, from an ordinary folder, at any number of steps."""

import difflib
import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, final

import diffusers
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from pydantic import JsonValue
from safetensors import SafetensorError

from nopair.data.files import is_folder, make_folder
from nopair.data.images import load_image, save_image, to_pillow
from nopair.device import choose_device, enough_memory, lacks_memory
from nopair.digests import folder_digest
from nopair.endpoints.server import Server
from nopair.errors import ConfigError, ModelError, NopairError
from nopair.evaluation.benchmarks.base import Item
from nopair.evaluation.editors.base import Told, below, ends_all, seed_of
from nopair.evaluation.specs import Spec, as_value
from nopair.precision import DTYPES

_OWN: Final = ("steps", "seed", "dtype", "name", "judge", "offload")
_SET_HERE: Final = frozenset({"self", "prompt", "image", "input_images", "generator", "output_type", "return_dict"})
OMNIGEN_IMAGE: Final = "<img><|image_1|></img>"
"""Where this family's prompts say that the image goes."""
_RAISED: Final = (ValueError, TypeError, RuntimeError, AttributeError, LookupError, ArithmeticError)
"""What pipelines raise where they cannot use an argument, or an image of this size; the library has no class for it."""


class _CallError(Exception):
    """A pipeline failed at one edit; its cause says how."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class StockEditor:
    """A `Contestant`: a pipeline that takes `image` and `prompt`, or OmniGen's `input_images`.

    `opened` loads it, and is called only where there is something to edit: several editors need not fit a GPU together.
    `call` holds further arguments of the pipeline, as the user gave them.
    """

    makes: ClassVar[bool] = True
    name: str
    about: Mapping[str, JsonValue]
    opened: Callable[[], Any]
    call: Mapping[str, bool | int | float | str]
    seed: int

    @classmethod
    def load(cls, spec: Spec, device: str) -> "StockEditor":
        """`diffusers:FOLDER[,steps=N][,seed=N][,dtype=bf16][,offload=yes][,name=NAME][,ARGUMENT=VALUE …]`.

        Its weights are not read yet.

        Raises:
            ModelError: no such folder, or not that of an editing pipeline of diffusers.
            ConfigError: an unknown option, or an argument that the pipeline does not take.
        """
        dtype = spec.options.get("dtype", "bf16")
        if dtype not in DTYPES:
            raise ConfigError(f"{spec.text}: dtype {dtype!r} is unknown; choose {', '.join(DTYPES)}")
        place = choose_device(device)
        folder = Path(spec.place)
        kind = _kind(folder)
        call: dict[str, bool | int | float | str] = {
            name: as_value(value) for name, value in spec.options.items() if name not in _OWN
        }
        if "steps" in spec.options:
            call["num_inference_steps"] = spec.number("steps", 1)
        _check_call(spec, kind, call)
        offload = spec.flag("offload") and place.type == "cuda"
        own = folder.resolve().name + (f"-{spec.options['steps']}-steps" if "steps" in spec.options else "")
        seed = spec.number("seed", 0, least=0)
        about: dict[str, JsonValue] = {
            "kind": "diffusers",
            "model": spec.place,
            "pipeline": kind.__name__,
            "version": folder_digest(folder),
            "dtype": dtype,
            "seed": seed,
            "call": dict(call),
        }
        opened = functools.partial(_open, folder, DTYPES[dtype], place, offload=offload)
        return cls(spec.options.get("name", own), about, opened, call, seed)

    @property
    def server(self) -> Server | None:
        """None is asked."""
        return None

    def output(self, item: Item, folder: Path) -> Path:
        """See `Contestant.output`."""
        return below(item, folder)

    def make(self, items: Sequence[Item], folder: Path, told: Told) -> None:
        """See `Contestant.make`. One image at a time: pipelines differ in what a batch means.

        Raises:
            ModelError: the pipeline cannot be opened.
            ConfigError: it can do nothing with the arguments that it was given.
            MemoryShortError: it does not fit the device.
            OutputError: outputs cannot be written.
        """
        if not items:
            return
        with enough_memory(f"give {self.name} ,offload=yes or a smaller size"):
            pipeline = self.opened()
            edited = 0
            for item in items:
                problem = self._problem(pipeline, item, below(item, folder), first=edited == 0)
                edited += problem is None
                told(item, problem)

    def _problem(self, pipeline: Any, item: Item, target: Path, *, first: bool) -> str | None:
        """`first`: nothing was edited before, so that an argument of a wrong type is wrong for all."""
        try:
            self._edit(pipeline, item, target)
        except _CallError as error:
            if first and self.call and isinstance(error.__cause__, TypeError):
                given = ", ".join(f"{name}={value}" for name, value in self.call.items())
                raise ConfigError(f"{self.name}: {error}; check what it is given: {given}") from error
            return str(error)
        except NopairError as error:
            if ends_all(error):
                raise
            return str(error)
        return None

    @torch.no_grad()
    def _edit(self, pipeline: Any, item: Item, target: Path) -> None:
        pixels = load_image(item.source)
        image = to_pillow(pixels)
        seed = seed_of(item, self.seed)
        # Drawn on the CPU, so that a seed means the same on every device.
        generator = torch.Generator().manual_seed(seed)
        given = _given(type(pipeline).__name__, item.instruction, image) | dict(self.call)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # some pipelines draw from the global generator, too
            try:
                result = pipeline(**given, generator=generator, output_type="pt")
            except _RAISED as error:
                if lacks_memory(error):
                    raise
                name = type(error).__name__
                raise _CallError(f"{type(pipeline).__name__} fails ({name}: {' '.join(str(error).split())})") from error
        if any(getattr(result, "nsfw_content_detected", None) or ()):
            raise ModelError(f"{self.name}: its safety checker blanked this output")
        make_folder(target.parent)
        save_image(result.images[0].float().cpu(), target)


def _given(family: str, instruction: str, image: Image.Image) -> dict[str, Any]:
    """An image and an instruction as a pipeline wants them. Sizes are left to it, unless it would forget the shape."""
    if family == "OmniGenPipeline":
        prompt = f"{OMNIGEN_IMAGE} {instruction}"
        return {"prompt": prompt, "input_images": [image], "use_input_image_size_as_output": True}
    given: dict[str, Any] = {"image": image, "prompt": instruction}
    if family == "FluxKontextPipeline":  # makes squares else; scales these to its own area
        given |= {"height": image.height, "width": image.width}
    return given


def _kind(folder: Path) -> type[DiffusionPipeline]:
    """The class of a folder's pipeline, by its model_index.json."""
    if not is_folder(folder):
        raise ModelError(f"{folder}: no such model folder; check the path")
    index = folder / "model_index.json"
    try:
        name = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder}: cannot be opened by diffusers (no class of a pipeline in {index.name}); copy the folder again"
        ) from error
    kind: Any = getattr(diffusers, name, None) if isinstance(name, str) else None
    if kind is None:
        raise ModelError(f"{folder}: diffusers {diffusers.__version__} has no {name}; install a version that has")
    lacking = getattr(kind, "_backends", None)  # of the library's stand-in for a class whose packages are missing
    if lacking is not None:
        raise ModelError(f"{folder}: a {name} needs {', '.join(lacking)}; install what is missing")
    takes = inspect.signature(kind.__call__).parameters
    if "prompt" not in takes or not ({"image", "input_images"} & set(takes)):
        raise ModelError(f"{folder}: a {name} takes no image and instruction; name a pipeline that edits")
    return kind


def _open(folder: Path, dtype: torch.dtype, place: torch.device, *, offload: bool) -> Any:
    try:
        pipeline: Any = DiffusionPipeline.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True
        )
    # NameError: some pipelines use torchvision without asking whether it is there.
    except (OSError, ValueError, AttributeError, ImportError, NameError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{folder}: cannot be opened by diffusers ({reason}); copy the folder again, or install what it names"
        ) from error
    if offload:
        pipeline.enable_model_cpu_offload(device=place)
    else:
        pipeline.to(place)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _check_call(spec: Spec, kind: type, call: Mapping[str, object]) -> None:
    """Raises:
    ConfigError: the pipeline has no such argument.
    """
    takes = sorted(set(inspect.signature(kind.__call__).parameters) - _SET_HERE)
    for name in call:
        if name not in takes:
            near = difflib.get_close_matches(name, [*takes, *_OWN], n=1, cutoff=0)[0]
            raise ConfigError(f"{spec.text}: {kind.__name__} takes no {name}; did you mean {near}?")

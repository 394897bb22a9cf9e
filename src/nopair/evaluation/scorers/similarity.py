"""How alike images are by the features of frozen encoders: DINO and CLIP-I to a subject's photos, CLIP-T to words.

As in DreamBooth's evaluation: cosines of features, averaged over all photos of the subject. They measure neither
whether an edit was made nor how well: a copy of the photo has the highest DINO and CLIP-I of all.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, final, runtime_checkable

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from nopair.data.files import is_folder
from nopair.data.images import load_image, to_pillow
from nopair.device import enough_memory
from nopair.digests import file_digest, folder_digest
from nopair.endpoints.server import Server
from nopair.errors import ImageError, ModelError
from nopair.evaluation.scorers.asking import Task, record_of
from nopair.evaluation.scorers.marking import Marked
from nopair.evaluation.scorers.rules import Marks
from nopair.evaluation.scorers.store import Store

QUESTION: Final = "similarity"
DINO_FAMILIES: Final = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")
CLIP_FAMILIES: Final = ("clip",)
ADVICE: Final = "take smaller encoders (--features), or another device (--device cpu)"
"""What to do where they do not fit."""


@dataclass(frozen=True, eq=False, slots=True)
class Encoder:
    """A frozen model of transformers and what prepares its input. `version` changes with its files."""

    model: Any
    processor: Any
    tokenizer: Any
    version: str

    @torch.no_grad()
    def pixels(self, images: Sequence[Path]) -> Float[Tensor, "image 3 height width"]:
        """Input of the vision part.

        Raises:
            ImageError: an image cannot be read.
        """
        shown = [to_pillow(load_image(path)) for path in images]
        return self.processor(images=shown, return_tensors="pt")["pixel_values"].to(self.model.device)


@runtime_checkable
class Measure(Protocol):
    """A kind of likeness. Marks are cosines, in [-1, 1]."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of its marks."""
        ...

    @property
    def version(self) -> str:
        """Of its encoder."""
        ...

    def __call__(self, output: Path, photos: Sequence[Path], caption: str) -> dict[str, float | None]:
        """The marks of an output, given the subject's photos and what it should show; None without such words."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class Dino:
    """A `Measure`: a self-supervised vision transformer's class token (DINO, arXiv 2104.14294, or a later one)."""

    encoder: Encoder
    names: tuple[str, ...] = ("DINO",)

    @property
    def version(self) -> str:
        """See `Measure`."""
        return f"dino {self.encoder.version}"

    @torch.no_grad()
    def __call__(self, output: Path, photos: Sequence[Path], caption: str) -> dict[str, float | None]:
        """See `Measure`."""
        tokens = self.encoder.model(pixel_values=self.encoder.pixels([output, *photos])).last_hidden_state
        return {"DINO": _likeness(tokens[:, 0])}


@dataclass(frozen=True, eq=False, slots=True)
class Clip:
    """A `Measure`: CLIP's shared space of images and words."""

    encoder: Encoder
    names: tuple[str, ...] = ("CLIP-I", "CLIP-T")

    @property
    def version(self) -> str:
        """See `Measure`."""
        return f"clip {self.encoder.version}"

    @torch.no_grad()
    def __call__(self, output: Path, photos: Sequence[Path], caption: str) -> dict[str, float | None]:
        """See `Measure`."""
        limit = self.encoder.model.config.text_config.max_position_embeddings
        words = self.encoder.tokenizer([caption or "-"], return_tensors="pt", truncation=True, max_length=limit)
        pixels = self.encoder.pixels([output, *photos])
        seen = self.encoder.model(pixel_values=pixels, **words.to(self.encoder.model.device))
        text = _likeness(torch.cat([seen.image_embeds[:1], seen.text_embeds])) if caption else None
        return {"CLIP-I": _likeness(seen.image_embeds), "CLIP-T": text}


@dataclass(frozen=True, slots=True)
class SimilarityScorer:
    """All measures that were asked for, as one scorer."""

    measures: tuple[Measure, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of all marks."""
        return tuple(name for measure in self.measures for name in measure.names)

    @property
    def version(self) -> str:
        """Of all encoders."""
        return ", ".join(measure.version for measure in self.measures)

    def score(self, tasks: Sequence[Task], store: Store, told: Callable[[int], None]) -> dict[str, str]:
        """Measure what is not in the store yet. Returns why others have no marks, by key.

        Raises:
            OutputError: the store cannot be written.
            MemoryShortError: the device is too small.
        """
        failed = {}
        for done, task in enumerate(tasks, start=1):
            key = self._key(task)
            if key not in store.records:
                item = task.item
                try:
                    marks: dict[str, float | None] = {}
                    with enough_memory(ADVICE):
                        for measure in self.measures:
                            marks |= measure(task.output, item.subject_images or (item.source,), item.caption)
                    store.add(record_of(key, task, QUESTION, self.version, "answered", json.dumps(marks)))
                except ImageError as error:
                    failed[key] = str(error)
            told(done)
        return failed

    def marks(self, task: Task, store: Store, failed: Mapping[str, str]) -> tuple[Marks, tuple[str, ...]]:
        """One output's marks, and why it has none."""
        key = self._key(task)
        record = store.records.get(key)
        if record is None:
            return dict.fromkeys(self.names), (failed.get(key, "not measured yet"),)
        found = json.loads(record.text)
        problems = tuple(f"{name}: no words to compare with" for name in self.names if found[name] is None)
        return {name: found[name] for name in self.names}, problems

    def _key(self, task: Task) -> str:
        photos = [file_digest(path) for path in task.item.subject_images or (task.item.source,)]
        asked = json.dumps([self.version, file_digest(task.output), photos, task.item.caption])
        return hashlib.sha256(asked.encode("ascii")).hexdigest()


@final
@dataclass(frozen=True, slots=True)
class FeatureMarker:
    """A `nopair.evaluation.scorers.marking.Marker` that asks nobody."""

    scorer: SimilarityScorer
    name: str = "features"
    model: str = ""
    temperature: float | None = 0.0
    server: Server | None = None
    longest_side: int | None = None
    high: float = 1.0

    @property
    def version(self) -> str:
        """The encoders'."""
        return self.scorer.version

    @property
    def measures(self) -> tuple[str, ...]:
        """The scorer's."""
        return self.scorer.names

    @property
    def leading(self) -> tuple[str, ...]:
        """All: none sums up the others."""
        return self.measures

    def estimate(self, tasks: Sequence[Task], store: Store) -> str:
        """See `Marker.estimate`."""
        return f"{self.name}: {len(tasks)} outputs to compare, here"

    def mark(self, tasks: Sequence[Task], store: Store, told: Callable[[int, int], None]) -> Marked:
        """See `Marker.mark`."""
        return Marked(self.scorer.score(tasks, store, lambda done: told(done, len(tasks))))

    def answered_as(self, tasks: Sequence[Task], store: Store) -> tuple[str, ...]:
        """See `Marker.answered_as`. No server."""
        return ()

    def marks(self, task: Task, store: Store, failed: Mapping[str, str]) -> tuple[Marks, tuple[str, ...]]:
        """See `Marker.marks`."""
        return self.scorer.marks(task, store, failed)

    def words(self, task: Task, store: Store) -> tuple[str, ...]:
        """None are said."""
        return ()


def load_dino(folder: Path, device: torch.device) -> Dino:
    """From an ordinary folder of transformers.

    Raises:
        ModelError: it is missing or holds no such encoder.
        MemoryShortError: it does not fit the device.
    """
    return Dino(_load(folder, DINO_FAMILIES, device))


def load_clip(folder: Path, device: torch.device) -> Clip:
    """From an ordinary folder of transformers.

    Raises:
        ModelError: it is missing or holds no such encoder.
        MemoryShortError: it does not fit the device.
    """
    return Clip(_load(folder, CLIP_FAMILIES, device))


def _load(folder: Path, families: tuple[str, ...], device: torch.device) -> Encoder:
    if not is_folder(folder):
        raise ModelError(f"{folder}: no such model folder; check the path")
    try:
        family = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
        if family not in families:
            raise ModelError(f"{folder}: is of the family {family!r}, expected one of {', '.join(families)}")
        model, loading = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **({"add_pooling_layer": False} if family == "vit" else {}),  # not used, and published DINOs have none
        )
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True) if family in CLIP_FAMILIES else None
    except (OSError, ValueError, ImportError, SafetensorError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder}: cannot be loaded ({reason}); copy the folder again") from error
    if loading["missing_keys"]:
        raise ModelError(f"{folder}: lacks weights, e.g. {min(loading['missing_keys'])}; copy the folder again")
    with enough_memory(ADVICE):
        model = model.requires_grad_(False).eval().to(device)
    return Encoder(model, processor, tokenizer, folder_digest(folder))


def _likeness(features: Float[Tensor, "one d"]) -> float:
    """Mean cosine of the first to all others."""
    unit = F.normalize(features.float(), dim=1)
    return float((unit[1:] @ unit[0]).mean().clamp(-1, 1))

"""Encoded prompts and references on disk: made once, before training, so that the text encoder need not stay.

An entry is one safetensors file, named by what was encoded; its folder is named by what encoded it. So runs, and
processes, that share a base share entries, and another base never meets them.

Beside the entries, a list keeps the names of all that a run needed, under the name of what they follow from. Where that
is the same at the next start, the list is gone through in place of the records.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from nopair.backbones.base import Backbone
from nopair.config import Recipe
from nopair.data.files import make_folder, write_atomic
from nopair.data.loader import Source
from nopair.errors import DataError
from nopair.training.keeping import BLANK
from nopair.training.parallel import ALONE, Ranks
from nopair.types import EditBatch, Text

_LOG: Final = logging.getLogger("nopair.data")
VERSION: Final = 2
"""Of what is encoded and how; entries of other versions are never met."""
ENCODERS: Final = ("text_encoder*", "tokenizer*", "vae")
"""Parts of a pipeline folder that decide what an entry is; so do the JSON files in the folder itself."""
LISTS: Final = "needed-*.bin"
"""Lists of entries in a store: the 32 bytes of each name, one after another."""
_NAME: Final = hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of entries of one base in one precision."""

    folder: Path

    @classmethod
    def of(cls, cache: Path, base: Path, precision: str) -> "Store":
        """The entries in `cache` that the encoders in the folder `base` make. Reads all their files once.

        Raises:
            OutputError: the folder cannot be created.
        """
        name = hashlib.sha256(f"{VERSION} {precision}".encode())
        inside = [path for pattern in ENCODERS for part in base.glob(pattern) for path in part.rglob("*")]
        # Which encoders there are, and how a family is spoken to, is told beside them: model_index.json, zimage.json.
        for path in sorted(path for path in (*base.glob("*.json"), *inside) if path.is_file()):
            name.update(path.relative_to(base).as_posix().encode())
            with path.open("rb") as file:
                name.update(hashlib.file_digest(file, "sha256").digest())
        folder = cache / name.hexdigest()[:16]
        make_folder(folder)
        return cls(folder)

    def path(self, key: str) -> Path:
        """Where an entry is, or would be."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def read(self, key: str, what: str) -> dict[str, Tensor]:
        """An entry. `what` names it for the message.

        Raises:
            DataError: it is not there, or damaged.
        """
        path = self.path(key)
        try:
            return load_file(path)
        except FileNotFoundError:
            self._forget()
            raise DataError(f"{self.folder}: has no entry for {what}; run the same recipe again to make it") from None
        except (OSError, SafetensorError) as error:
            line = str(error).splitlines()[0]
            raise DataError(f"{path}: damaged ({line}); delete it and run the same recipe again") from None

    def write(self, key: str, entry: Mapping[str, Tensor]) -> None:
        """Write an entry, complete or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        path = self.path(key)
        make_folder(path.parent)
        write_atomic(path, save({name: value.detach().cpu().contiguous() for name, value in entry.items()}))

    def has(self, key: str) -> bool:
        """Whether an entry is there; damage shows when it is read."""
        return self.path(key).is_file()

    def has_all(self, needed: Path) -> bool:
        """Whether that list is there, and every entry that it names."""
        try:
            with needed.open("rb") as names:
                return all(self.has(name.hex()) for name in iter(lambda: names.read(_NAME), b""))
        except FileNotFoundError:
            return False

    def _forget(self) -> None:
        """Remove the lists: one of them has left out what was needed, so the next start looks at every record. Where
        they cannot be removed they were not written here."""
        with contextlib.suppress(OSError):
            for needed in self.folder.glob(LISTS):
                needed.unlink(missing_ok=True)


def prompt_key(prompt: str) -> str:
    """Name of a prompt's entry."""
    return hashlib.sha256(b"prompt\0" + prompt.encode()).hexdigest()


def image_key(pixels: Float[Tensor, "3 height width"]) -> str:
    """Name of an image's entry."""
    shape = "x".join(map(str, pixels.shape))
    return hashlib.sha256(f"image {shape}\0".encode() + pixels.cpu().contiguous().numpy().tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class CachedBackbone:
    """A backbone whose prompts and references come from a store; a `nopair.backbones.base.Backbone`.

    What is not in the store is an error and is never encoded on the way, as the encoder may be gone.
    """

    backbone: Backbone
    store: Store

    @property
    def transformer(self) -> nn.Module:
        return self.backbone.transformer

    @property
    def adapter_ranks(self) -> Mapping[str, int]:
        return self.backbone.adapter_ranks

    def shift_for(self, height: int, width: int, steps: int) -> float:
        return self.backbone.shift_for(height, width, steps)

    def encode_text(self, prompts: Sequence[str]) -> Text:
        """Entries of the prompts, padded with zeros to the longest.

        Raises:
            DataError: one of them is not in the store, or damaged.
        """
        entries = [self.store.read(prompt_key(prompt), repr(prompt)) for prompt in prompts]
        device = next(self.transformer.parameters()).device
        lengths = tuple(len(entry["features"]) for entry in entries)
        features = nn.utils.rnn.pad_sequence([entry["features"] for entry in entries], batch_first=True)
        pooled = torch.stack([entry["pooled"] for entry in entries]).to(device) if "pooled" in entries[0] else None
        return Text(features.to(device), lengths, pooled)

    def encode_image(self, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b c h w"]:
        """Entries of the images.

        Raises:
            DataError: one of them is not in the store, or damaged.
        """
        entries = [self.store.read(image_key(image), "a reference image")["latents"] for image in pixels]
        return torch.stack(entries).to(pixels)

    def decode_latents(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        return self.backbone.decode_latents(latents)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return self.backbone.latent_shape(height, width)

    def velocity(
        self,
        noisy: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        text: Text,
        reference: Float[Tensor, "b c h w"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        return self.backbone.velocity(noisy, t, text, reference)

    def with_transformer(self, transformer: nn.Module) -> "CachedBackbone":
        """The same store around another transformer."""
        return dataclasses.replace(self, backbone=self.backbone.with_transformer(transformer))


@torch.no_grad()
def fill(
    store: Store,
    backbone: Backbone,
    recipe: Recipe,
    source: Source,
    shown: EditBatch,
    ranks: Ranks = ALONE,
    state: str | None = None,
) -> None:
    """Encode whatever training by `recipe` will ask for and the store does not have, one by one. Ranks share the work,
    and each returns when all is there. A bar on standard error says how far the first one is.

    Args:
        state: what the records of `source` follow from, if that is known, such as `PhotoSource.state`. Where it is that
            of an earlier fill whose entries are all there, no record is read. A store that cannot be written to keeps
            nothing of this.

    Raises:
        DataError: a photo cannot be read.
        OutputError: an entry cannot be written.
    """
    needed = None if state is None else _list(store, recipe, shown, ranks, state)
    if needed is None or not store.has_all(needed):
        names, told = bytearray(), ranks.rank > 0
        for batch, with_captions in itertools.chain([(shown, False)], _batches(recipe, source, ranks)):
            keys = list(_encode(store, backbone, recipe, batch, with_captions))
            names += bytes.fromhex("".join(keys))
            if batch is not shown and not told:
                told = True
                _tell_of_space(store, keys, recipe)
        if needed is not None and os.access(store.folder, os.W_OK | os.X_OK):
            write_atomic(needed, bytes(names))
    ranks.wait()


def _tell_of_space(store: Store, first: Sequence[str], recipe: Recipe) -> None:
    """Warn if the disk could not hold as much as the `first` record took for each of all records."""
    most = visited(recipe) * sum(store.path(key).stat().st_size for key in first)
    free = shutil.disk_usage(store.folder).free
    if most > free:
        _LOG.warning(
            "data.cache: %.1f GiB are free in %s, and %.1f GiB may be needed, less where photos or words come again; "
            "set data.cache to a larger disk or to null",
            *(free / 2**30, store.folder, most / 2**30),
        )


def _list(store: Store, recipe: Recipe, shown: EditBatch, ranks: Ranks, state: str) -> Path:
    """Where the names of this rank's entries are kept, by all that they follow from."""
    asked = visited(recipe), described(recipe), recipe.npedit.negative_prompt, recipe.npedit.shows_holes
    examples = *map(image_key, shown.reference), shown.captions, shown.instructions, shown.edited_captions
    name = hashlib.sha256(repr((state, asked, ranks.rank, ranks.world, examples)).encode()).hexdigest()
    return store.folder / LISTS.replace("*", name)


def _encode(store: Store, backbone: Backbone, recipe: Recipe, batch: EditBatch, with_captions: bool) -> Iterator[str]:
    """Make what a batch needs and the store does not have; the names of all that it needs."""
    captions = batch.captions if with_captions else ()
    for prompt in {*captions, *batch.instructions, *batch.edited_captions, recipe.npedit.negative_prompt}:
        if prompt is None:
            continue
        key = prompt_key(prompt)
        if not store.has(key):
            text = backbone.encode_text([prompt])
            entry = {"features": text.features[0, : text.lengths[0]]}
            store.write(key, entry if text.pooled is None else entry | {"pooled": text.pooled[0]})
        yield key
    for image in _images(batch, recipe):
        key = image_key(image)
        if not store.has(key):
            store.write(key, {"latents": backbone.encode_image(image[None])[0]})
        yield key


def _images(batch: EditBatch, recipe: Recipe) -> Iterator[Float[Tensor, "3 height width"]]:
    """The references, and what stands for an edited place in one, if training by `recipe` has such."""
    yield from batch.reference
    if recipe.npedit.shows_holes:
        yield torch.full_like(batch.reference[0], BLANK)


def visited(recipe: Recipe) -> int:
    """How many records the phases visit, the fake score's own among them; they all number from 0."""
    npedit = recipe.npedit
    turns = 1 + npedit.fake_steps * (npedit.fake_samples == "fresh")
    return max(
        recipe.warmup.steps * recipe.warmup.batch,
        recipe.grpo.steps * recipe.grpo.batch,
        npedit.steps * npedit.batch * turns,
    )


def described(recipe: Recipe) -> int:
    """Of how many of these, the first ones, the references' own captions are read."""
    return visited(recipe) if recipe.npedit.reads_captions else recipe.warmup.steps * recipe.warmup.batch


def _batches(recipe: Recipe, source: Source, ranks: Ranks) -> Iterator[tuple[EditBatch, bool]]:
    """This rank's share of all records that any phase visits, one by one, as they may differ in size; and whether their
    captions are read."""
    indices = range(ranks.rank, visited(recipe), ranks.world)
    console = Console(stderr=True)
    for index in track(indices, "encoding", console=console, transient=True, disable=ranks.rank > 0):
        yield source.batch([index]), index < described(recipe)

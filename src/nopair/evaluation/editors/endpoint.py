"""Any server with OpenAI's `images/edits` route: hosted models, vLLM-Omni, SGLang, or `nopair serve`."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, final

from pydantic import JsonValue

from nopair.data.files import make_folder, write_atomic
from nopair.data.images import encode, load_image, save_image, shrink
from nopair.endpoints.client import Endpoint
from nopair.endpoints.messages import Picture
from nopair.endpoints.server import Server
from nopair.errors import ImageError
from nopair.evaluation.benchmarks.base import Item
from nopair.evaluation.crowd import tell_each
from nopair.evaluation.editors.base import Told, below
from nopair.evaluation.scorers.judge import SERVER_OPTIONS, server_of
from nopair.evaluation.specs import Spec, as_value
from nopair.evaluation.spending import noted

USAGE: Final = "usage.jsonl"
"""In the folder of the outputs: what they took."""
FIELDS: Final = (
    "size",
    "quality",
    "num_inference_steps",
    "guidance_scale",
    "true_cfg_scale",
    "seed",
    "response_format",
)
"""Options that travel in the form as they are; a server that does not know one refuses."""


@final
@dataclass(frozen=True, slots=True)
class EndpointEditor:
    """A `Contestant` behind an address."""

    makes: ClassVar[bool] = True
    name: str
    about: Mapping[str, JsonValue]
    server: Server
    fields: Mapping[str, bool | int | float | str]
    longest_side: int | None = None

    @classmethod
    def load(cls, spec: Spec) -> "EndpointEditor":
        """`endpoint:URL,model=NAME[,key=VARIABLE][,concurrency=N]…[,longest_side=N][,name=NAME][,FIELD=VALUE …]`.

        Fields are as in `FIELDS`. Photos are sent as they are, or scaled down to the longest side.

        Raises:
            ConfigError: an unknown option or a wrong value.
        """
        spec.only("name", "judge", "longest_side", *SERVER_OPTIONS, *FIELDS)
        server = server_of(spec)
        fields = {name: as_value(value) for name, value in spec.options.items() if name in FIELDS}
        about: dict[str, JsonValue] = {
            "kind": "endpoint",
            "url": server.url,
            "model": server.model,
            "fields": dict(fields),
        }
        side = spec.number("longest_side", 1) if "longest_side" in spec.options else None
        if side is not None:
            about["longest_side"] = side
        return cls(spec.options.get("name", server.model.rpartition("/")[2]), about, server, fields, side)

    def output(self, item: Item, folder: Path) -> Path:
        """See `Contestant.output`."""
        return below(item, folder)

    def make(self, items: Sequence[Item], folder: Path, told: Told) -> None:
        """See `Contestant.make`."""
        asyncio.run(self._make(items, folder, told))

    async def _make(self, items: Sequence[Item], folder: Path, told: Told) -> None:
        async with Endpoint(self.server) as endpoint:
            spending = noted(folder / USAGE, self.server, lambda: endpoint.usage)

            async def edit(item: Item) -> None:
                pixels = load_image(item.source)
                shown = pixels if self.longest_side is None else shrink(pixels, self.longest_side)
                picture = Picture(encode(shown, "PNG"), "image/png")
                edited = await endpoint.edit_image([picture], item.instruction, self.fields)
                _save(edited.content, below(item, folder))

            heard = any(folder.rglob("*.png"))
            with spending:
                await tell_each(items, self.server.concurrency, edit, told, heard=heard)


def _save(content: bytes, target: Path) -> None:
    """As PNG, whatever came.

    Raises:
        ImageError: it is no image.
    """
    make_folder(target.parent)
    raw = target.with_suffix(".raw")
    write_atomic(raw, content)
    try:
        save_image(load_image(raw), target)
    except ImageError as error:
        raise ImageError(f"the server's answer is no image ({str(error).partition(': ')[2]})") from error
    finally:
        raw.unlink()

"""Opening the engine that a recipe names."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from nopair.endpoints.client import Endpoint
from nopair.endpoints.messages import Ask, Reply
from nopair.endpoints.server import Usage
from nopair.synthesis.asking import Engine
from nopair.synthesis.recipe import LocalEngine, ServerEngine

if TYPE_CHECKING:
    from nopair.judges.writer import Writer


@asynccontextmanager
async def opened(config: ServerEngine | LocalEngine) -> AsyncIterator[Engine]:
    """The engine, to be asked within the running event loop.

    Raises:
        ConfigError: a server's key is not set, or there is no such device.
        MissingExtraError: a server without the `openai` library.
        ModelError, JudgeError: a local model cannot be used.
        MemoryShortError: it does not fit its device.
    """
    if isinstance(config, ServerEngine):
        async with Endpoint(config) as endpoint:
            yield Opened("server", config.model, config.manner(), config.concurrency, endpoint)
    else:
        yield _local(config)


def _local(config: LocalEngine) -> "Opened":
    # torch and transformers are not needed to ask a server
    import torch

    from nopair.device import choose_device, enough_memory
    from nopair.judges.load import load_judge
    from nopair.judges.writer import Writer
    from nopair.weights import resolve

    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
    with enough_memory(f"give the engine {config.path} dtype: bfloat16, a smaller model, or another device"):
        judge = load_judge(resolve(config.path), dtype).to(choose_device(config.device))
    return Opened("local", config.path, "", 1, Writer(config.path, judge))


@final
@dataclass(frozen=True, slots=True)
class Opened:
    """An `Engine`: who answers, and how records name it."""

    name: str
    model: str
    manner: str
    concurrency: int
    asked: "Endpoint | Writer"

    @property
    def usage(self) -> Usage:
        """See `Engine`."""
        return self.asked.usage

    async def chat(self, ask: Ask) -> Reply:
        """See `Engine.chat`."""
        return await self.asked.chat(ask)

"""Opening the engine that a recipe names."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
    """
    if isinstance(config, ServerEngine):
        async with Endpoint(config) as endpoint:
            yield ServedModel(endpoint)
    else:
        yield _local(config)


def _local(config: LocalEngine) -> "LocalModel":
    # torch and transformers are not needed to ask a server
    import torch

    from nopair.device import choose_device
    from nopair.judges.load import load_judge
    from nopair.judges.writer import Writer
    from nopair.weights import resolve

    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
    judge = load_judge(resolve(config.path), dtype).to(choose_device(config.device))
    return LocalModel(config.path, Writer(config.path, judge))


@final
class ServedModel:
    """An `Engine`: a model behind a server."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    @property
    def name(self) -> str:
        """See `Engine`."""
        return "server"

    @property
    def model(self) -> str:
        """See `Engine`."""
        return self._endpoint.server.model

    @property
    def concurrency(self) -> int:
        """See `Engine`."""
        return self._endpoint.server.concurrency

    @property
    def usage(self) -> Usage:
        """See `Engine`."""
        return self._endpoint.usage

    async def chat(self, ask: Ask) -> Reply:
        """See `Engine.chat`."""
        return await self._endpoint.chat(ask)


@final
class LocalModel:
    """An `Engine`: a checkpoint folder, opened here."""

    def __init__(self, model: str, writer: "Writer") -> None:
        self._model = model
        self._writer = writer

    @property
    def name(self) -> str:
        """See `Engine`."""
        return "local"

    @property
    def model(self) -> str:
        """See `Engine`."""
        return self._model

    @property
    def concurrency(self) -> int:
        """See `Engine`."""
        return 1

    @property
    def usage(self) -> Usage:
        """See `Engine`."""
        return self._writer.usage

    async def chat(self, ask: Ask) -> Reply:
        """See `Engine.chat`."""
        return await self._writer.chat(ask)

"""Opening the engine that a recipe names."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import final

from nopair.endpoints.client import Endpoint
from nopair.endpoints.messages import Ask, Reply
from nopair.endpoints.server import Usage
from nopair.synthesis.asking import Engine
from nopair.synthesis.recipe import LocalEngine, ServerEngine


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
        from nopair.synthesis.local import LocalModel

        yield LocalModel.load(config)


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

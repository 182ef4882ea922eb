"""The registry of models and what is loaded of it."""

# ruff: noqa: ASYNC109 - a time-out here becomes the deadline that the server sees.

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from multigrain.v1.model_pb2 import Model
from multigrain_client.aio.feed import in_thread
from multigrain_client.aio.rpcs import AsyncRpcs
from multigrain_client.bundles import BundleWriter, import_requests
from multigrain_client.requests import list_models_request


class AsyncModelCalls(AsyncRpcs):
    """A model is named "name" (its newest version), "name@version", or by an alias."""

    async def models(
        self,
        name: str = "",
        *,
        loaded_only: bool = False,
        page_size: int = 0,
        timeout: float | None = None,
    ) -> AsyncIterator[Model]:
        """As ``Client.models``."""
        request = list_models_request(name, loaded_only=loaded_only, page_size=page_size)
        while True:
            page = await self.ListModels(request, timeout=timeout)
            for model in page.models:
                yield model
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def model(self, model: str, *, timeout: float | None = None) -> Model:
        """As ``Client.model``."""
        return await self.GetModel(model=model, timeout=timeout)

    async def load_model(
        self,
        model: str,
        *,
        runtime: str = "",
        make_default: bool = False,
        timeout: float | None = None,
    ) -> Model:
        """As ``Client.load_model``."""
        return await self.LoadModel(
            model=model, runtime=runtime, make_default=make_default, timeout=timeout
        )

    async def unload_model(self, model: str, *, timeout: float | None = None) -> Model:
        """As ``Client.unload_model``."""
        return await self.UnloadModel(model=model, timeout=timeout)

    async def set_alias(self, alias: str, model: str, *, timeout: float | None = None) -> None:
        """As ``Client.set_alias``."""
        await self.SetAlias(alias=alias, model=model, timeout=timeout)

    async def delete_model(self, model: str, *, timeout: float | None = None) -> None:
        """As ``Client.delete_model``."""
        await self.DeleteModel(model=model, timeout=timeout)

    async def import_model(
        self,
        path: str | os.PathLike[str],
        *,
        name: str = "",
        version: int = 0,
        timeout: float | None = None,
    ) -> Model:
        """As ``Client.import_model``."""
        return await self.ImportModel(
            in_thread(import_requests(path, name=name, version=version)), timeout=timeout
        )

    async def download_model(
        self, model: str, path: str | os.PathLike[str], *, timeout: float | None = None
    ) -> Path:
        """As ``Client.download_model``."""
        with BundleWriter(path) as writer:
            async for message in self.DownloadModel(model=model, timeout=timeout):
                await asyncio.to_thread(writer.write, message)
            return await asyncio.to_thread(writer.finish)

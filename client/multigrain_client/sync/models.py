# Generated from aio/models.py by `make sync-client`: edit that file instead.
"""The model registry, loading, import and download."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from multigrain.v1.model_pb2 import Model
from multigrain_client.bundles import import_requests
from multigrain_client.downloads import DownloadWriter
from multigrain_client.requests import list_models_request
from multigrain_client.sync.rpcs import Rpcs


class ModelCalls(Rpcs):
    """A model is named "name" (its newest version), "name@version", or by an alias."""

    def models(
        self,
        name: str = "",
        *,
        loaded_only: bool = False,
        page_size: int = 0,
        timeout: float | None = None,
    ) -> Iterator[Model]:
        """Versions of models; pages are fetched on demand.

        Args:
            name: only versions of this model; empty = all.
            loaded_only: only loaded models.
            page_size: models per page, 1..1000; 0 = the server's default.
            timeout: seconds for each page.
        """
        request = list_models_request(name, loaded_only=loaded_only, page_size=page_size)
        while True:
            page = self.ListModels(request, timeout=timeout)
            for model in page.models:
                yield model
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def model(self, model: str, *, timeout: float | None = None) -> Model:
        """The current state of one model."""
        return self.GetModel(model=model, timeout=timeout)

    def load_model(
        self,
        model: str,
        *,
        runtime: str = "",
        make_default: bool = False,
        timeout: float | None = None,
    ) -> Model:
        """Starts an engine for the model and returns when it is ready.

        Args:
            model: the model.
            runtime: "auto" (also if empty), "openvino", "onnxruntime" or "mindspore"; with
                "openvino-int8", "-bf16" or "-f32" also the precision.
            make_default: also serve requests that name no model with this one.
            timeout: seconds for the call.
        """
        return self.LoadModel(
            model=model, runtime=runtime, make_default=make_default, timeout=timeout
        )

    def unload_model(self, model: str, *, timeout: float | None = None) -> Model:
        """Finishes the requests in flight, then stops the engine."""
        return self.UnloadModel(model=model, timeout=timeout)

    def set_alias(self, alias: str, model: str, *, timeout: float | None = None) -> None:
        """Points an alias at a loaded "name@version"; an empty model removes the alias."""
        self.SetAlias(alias=alias, model=model, timeout=timeout)

    def delete_model(self, model: str, *, timeout: float | None = None) -> None:
        """Deletes a "name@version" from the server's disk. It must not be loaded."""
        self.DeleteModel(model=model, timeout=timeout)

    def import_model(
        self,
        path: str | os.PathLike[str],
        *,
        name: str = "",
        version: int = 0,
        timeout: float | None = None,
    ) -> Model:
        """Uploads a bundle: its folder, or an uncompressed tar archive of it.

        Args:
            path: the bundle.
            name: name in the registry; empty = the name in the bundle.
            version: 0 = the next free one.
            timeout: seconds for the call.
        """
        requests = import_requests(path, name=name, version=version)
        return self.ImportModel(requests, timeout=timeout)

    def download_model(
        self, model: str, path: str | os.PathLike[str], *, timeout: float | None = None
    ) -> Path:
        """Writes the bundle as a tar archive to ``path``, which appears when it is complete.

        Raises:
            ServerError: if the received archive is damaged.
        """
        with DownloadWriter(path, "the bundle") as writer:
            for message in self.DownloadModel(model=model, timeout=timeout):
                writer.write(message)
            return writer.finish()

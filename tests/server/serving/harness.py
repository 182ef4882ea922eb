"""A model manager and an image service with real or fake engines, for tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from multigrain.engine.protocol import EmbeddingOptions
from multigrain_server.devices import Leases
from multigrain_server.engines.config import ServingConfig
from multigrain_server.engines.images import ImageRequest
from multigrain_server.engines.launch import Launch
from multigrain_server.models.manager import ModelManager, ModelReferences
from multigrain_server.models.metrics import ServingMetrics
from multigrain_server.serving.service import ImageResponse, ImageService
from tests.server.engines.held_launch import launch_holdable


class NoReferences:
    """There are no jobs."""

    def reader_of(self, folder: Path) -> str:
        return ""

    def exporter_of(self, name: str) -> str:
        return ""


class Harness:
    """The models and images of one daemon, and the health that was reported."""

    def __init__(
        self,
        root: Path,
        config: ServingConfig,
        launch: Launch,
        leases: Leases | None,
        references: ModelReferences,
    ) -> None:
        self.registry = CollectorRegistry()
        self.health: dict[str, bool] = {}
        self.health_log: list[tuple[str, bool]] = []
        self.config = config
        metrics = ServingMetrics(self.registry)
        self.manager = ModelManager(
            root / "models",
            root / "serving.json",
            config,
            metrics,
            self._on_health,
            references,
            launch=launch,
            leases=leases,
        )
        self.service = ImageService(self.manager.catalog, config, metrics)

    def _on_health(self, name: str, serving: bool) -> None:
        self.health[name] = serving
        self.health_log.append((name, serving))

    async def embed(self, *images: bytes, **fields: object) -> ImageResponse:
        return await self.service.infer(embed(*images, **fields))

    async def close(self, drain_seconds: float = 1.0) -> None:
        """As the daemon's stop: refuses new requests, lets those in flight finish."""
        self.service.admission.drain()
        await self.manager.close(drain_seconds)

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def harness(
    root: Path,
    config: ServingConfig | None = None,
    launch: Launch = launch_holdable,
    leases: Leases | None = None,
    references: ModelReferences | None = None,
    on_loaded: Callable[[], None] = lambda: None,
) -> AsyncIterator[Harness]:
    """Started, and ended with all its engines."""
    built = Harness(root, config or small_config(), launch, leases, references or NoReferences())
    await built.manager.start(on_loaded)
    try:
        yield built
    finally:
        await built.close()


def small_config(**fields: object) -> ServingConfig:
    return ServingConfig(**{"max_batch": 8, "decode_threads": 2, "engine_threads": 1, **fields})


def embed(*images: bytes, **fields: object) -> ImageRequest:
    """A request for raw float32 embeddings."""
    return ImageRequest(
        **{
            "model": "",
            "images": images,
            "vector": EmbeddingOptions(normalize=False),
            "received_ns": time.monotonic_ns(),
            **fields,
        }
    )


def vectors(response: ImageResponse) -> NDArray[np.float32]:
    return np.stack([np.frombuffer(item.vector, "<f4") for item in response.results])


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits for a condition; fails when it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(0.005)

"""A model manager with real or imitated engines, for tests."""

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
from multigrain_server.engines.launch import Launch
from multigrain_server.models.aliases import ModelUsers
from multigrain_server.models.manager import ModelManager
from multigrain_server.serving.config import ServingConfig
from multigrain_server.serving.service import ImageService
from multigrain_server.serving.types import Answer, ImageRequest
from tests.server.engines.held_launch import launch_holdable


class House:
    """One manager on a data folder, and what it told about health."""

    def __init__(
        self,
        root: Path,
        config: ServingConfig,
        launch: Launch,
        leases: Leases | None,
        users: ModelUsers | None,
    ) -> None:
        self.registry = CollectorRegistry()
        self.health: dict[str, bool] = {}
        self.health_log: list[tuple[str, bool]] = []
        self.manager = ModelManager(
            root / "models",
            root / "serving.json",
            config,
            self.registry,
            self._on_health,
            users,
            launch=launch,
            leases=leases,
        )
        self.service = ImageService(self.manager)

    def _on_health(self, name: str, serving: bool) -> None:
        self.health[name] = serving
        self.health_log.append((name, serving))

    async def embed(self, *images: bytes, **fields: object) -> Answer:
        return await self.service.answer(embed(*images, **fields))

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def house(
    root: Path,
    config: ServingConfig | None = None,
    launch: Launch = launch_holdable,
    leases: Leases | None = None,
    users: ModelUsers | None = None,
) -> AsyncIterator[House]:
    """Started, and ended with all its engines."""
    built = House(root, config or small_config(), launch, leases, users)
    await built.manager.start()
    try:
        yield built
    finally:
        await built.manager.close(1.0)


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


def vectors(answer: Answer) -> NDArray[np.float32]:
    return np.stack([np.frombuffer(item.vector, "<f4") for item in answer.items])


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits for a condition; fails when it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(0.005)

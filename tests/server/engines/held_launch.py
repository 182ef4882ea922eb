"""A launcher of engines whose batches a test can hold back."""

from __future__ import annotations

from dataclasses import replace

from multigrain_server.engines.config import ServingConfig
from multigrain_server.engines.launch import EngineChild, EngineSpec, launch
from tests.engine import held


async def launch_holdable(order: EngineSpec, config: ServingConfig) -> EngineChild:
    """As :func:`launch`, with an engine that :func:`tests.engine.held.hold` can hold."""
    order = replace(order, environment=held.holdable(order.environment))
    return await launch(order, config, held.COMMAND)

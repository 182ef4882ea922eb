"""A model in service: its engine now, and the next one when that dies."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from enum import Enum

from multigrain.engine.protocol import Result
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.devices import EngineDevices
from multigrain_server.engines.engine import EngineProcess
from multigrain_server.engines.launch import EngineOrder, Launch
from multigrain_server.engines.quarantine import RefusedImages
from multigrain_server.engines.restart import Backoff, EngineKeeper, KeptModel
from multigrain_server.models.registry import BundleEntry
from multigrain_server.serving.config import ServingConfig
from multigrain_server.serving.metrics import ModelInfo, ModelStatistics, ServingMetrics


class ModelState(Enum):
    """Whether a model answers. Names are those of ``multigrain.v1.ModelState``."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class LoadedModel(KeptModel):
    """Keeps an engine running for one bundle.

    Args:
        entry: the bundle, verified by the caller.
        runtime: "auto", "mindspore" or "onnxruntime".
        launch: starts the process of an engine.
        devices: where it finds one to compute on.
        on_change: called after each change of state.
    """

    def __init__(
        self,
        entry: BundleEntry,
        runtime: str,
        config: ServingConfig,
        metrics: ServingMetrics,
        launch: Launch,
        devices: EngineDevices,
        on_change: Callable[[], None],
    ) -> None:
        self.entry = entry
        self.runtime = runtime
        self.state = ModelState.LOADING
        self.message = ""
        self.load_seconds = 0.0
        self.restarts = 0
        self.statistics = ModelStatistics()
        #: When it was last routed to, on the clock of ``time.monotonic``.
        self.last_used = time.monotonic()
        self._config = config
        self._metrics = metrics
        self._launch = launch
        self._devices = devices
        self._on_change = on_change
        self._refused = RefusedImages()
        self._backoff = Backoff(config.restart_backoff_seconds, config.restart_backoff_max_seconds)
        self._engine: EngineProcess | None = None
        self._keeper: EngineKeeper | None = None
        self._replaced: dict[asyncio.Task[None], EngineProcess] = {}

    @property
    def engine(self) -> EngineProcess:
        """The engine that answers. Raises UNAVAILABLE while there is none."""
        if self.state is ModelState.READY and self._engine is not None:
            return self._engine
        raise MultigrainError(
            ErrorKind.UNAVAILABLE,
            f"{self.entry.version} is {self.state.value}"
            + (f" ({self.message})" if self.message else "")
            + ": try again",
            retry_after=1.0,
        )

    @property
    def runtime_description(self) -> str:
        """What runs it and how that was chosen, or "" while nothing does."""
        ready = self._engine.ready if self._engine is not None else None
        return f"{ready.runtime} ({ready.reason})" if ready is not None else ""

    def resident_bytes(self) -> int:
        """Memory that its engine holds; 0 while there is none."""
        engine = self._engine
        return engine.resident_bytes() if engine is not None else 0

    async def load(self) -> None:
        """Starts the first engine. Raises MultigrainError and is of no use then."""
        started = time.monotonic()
        self._set(ModelState.LOADING, "")
        self._engine = await self._start(self.runtime)
        self.load_seconds = time.monotonic() - started
        self._metrics.model_load_seconds.observe(self.load_seconds)
        self._set(ModelState.READY, "")
        self._keep(self._engine)

    def fail(self, message: str) -> None:
        """Notes why it could not be loaded."""
        self._set(ModelState.FAILED, message)

    async def switch_runtime(self, runtime: str) -> None:
        """Moves to a new engine without a gap; on failure the old one stays.

        Raises:
            MultigrainError: why the new engine could not be loaded.
        """
        started = time.monotonic()
        engine = await self._start(runtime)
        self.load_seconds = time.monotonic() - started
        await self._end_keeper()
        old, self._engine = self._engine, engine
        self.runtime = runtime
        self._set(ModelState.READY, "")
        self._keep(engine)
        if old is not None:
            # By itself: the caller may go away, the old engine must end all the same.
            task = asyncio.create_task(_end(old, self._config.drain_seconds))
            self._replaced[task] = old
            task.add_done_callback(self._replaced.pop)

    async def end(self, drain_seconds: float) -> None:
        """Takes no more images, lets those in work finish, ends the engine.

        May be called again with less time, while it waits.
        """
        self._set(ModelState.DRAINING, "")
        await self._end_keeper()
        engines = [engine for engine in (self._engine, *self._replaced.values()) if engine]
        await asyncio.gather(*(_end(engine, drain_seconds) for engine in engines))
        self._engine = None
        self._devices.give_back(str(self.entry.version))
        self._set(ModelState.UNLOADED, "")

    # KeptModel

    async def start_engine(self) -> EngineProcess:
        # Its requests wait for it: not behind what other models are asked.
        return await self._start(self.runtime, background=False)

    def engine_ended(self, reason: str) -> None:
        self.restarts += 1
        self._metrics.engine_restarts.inc()
        self._set(ModelState.FAILED, f"its engine ended ({reason}) and is being replaced")

    def engine_delayed(self, reason: str) -> None:
        self._set(ModelState.FAILED, reason)

    def engine_replaced(self, engine: EngineProcess) -> None:
        self._engine = engine
        self._set(ModelState.READY, "")

    async def _start(self, runtime: str, *, background: bool = True) -> EngineProcess:
        label = str(self.entry.version)
        environment = self._devices.take(label)
        order = EngineOrder(label, self.entry.path, runtime, background, environment)
        try:
            return await EngineProcess.start(
                order, self._config, self._observe, self._launch, self._refused
            )
        except BaseException:
            # Without a first engine there is no model that could need a device again.
            if self._engine is None:
                self._devices.give_back(label)
            raise

    def _keep(self, engine: EngineProcess) -> None:
        self._keeper = EngineKeeper(
            str(self.entry.version),
            self,
            engine,
            self._backoff,
            self._config.restart_backoff_max_seconds,
            self._refused,
        )

    async def _end_keeper(self) -> None:
        if self._keeper is not None:
            await self._keeper.close()
            self._keeper = None

    def _set(self, state: ModelState, message: str) -> None:
        self.state = state
        self.message = message
        version, ready = self.entry.version, self._engine.ready if self._engine else None
        info = None
        if ready is not None:
            runtime = ready.runtime.partition(" ")[0]
            info = ModelInfo(runtime, ready.precision, self._config.device)
        self._metrics.model_info(version.name, version.version, info)
        self._on_change()

    def _observe(self, result: Result) -> None:
        """Metrics of one result."""
        self.statistics.computed(result)
        metrics, name = self._metrics, self.entry.version.name
        if result.where:
            metrics.cancelled_items.labels(result.where).inc()
        elif result.error is not None:
            metrics.items_failed.labels(_REASONS.get(result.error, "other")).inc()
        if result.decode_ns:
            metrics.stage(name, "decode", result.decode_ns / 1e9)
        if result.batch_items:
            metrics.stage(name, "queue", result.queue_ns / 1e9)
            metrics.stage(name, "infer", result.compute_ns / 1e9)
            if result.first_in_batch:
                metrics.batch(name, result.batch_items)


_REASONS = {
    ErrorKind.IMAGE_UNREADABLE: "decode",
    ErrorKind.IMAGE_FORMAT: "bad_format",
    ErrorKind.IMAGE_TOO_LARGE: "too_large",
    ErrorKind.NOT_FINITE: "nan",
    ErrorKind.IMAGE_HARMFUL: "harmful",
}


async def _end(engine: EngineProcess, drain_seconds: float) -> None:
    """Waits for the images in work, but not for ever, and ends the process."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(drain_seconds):
            await engine.wait_idle()
    await engine.stop()

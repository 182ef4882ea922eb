"""A loaded model: its state and its engine, which is replaced when it dies or is switched."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from enum import Enum

import structlog

from multigrain.engine.protocol import Result
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.sandbox.apply import SandboxReport
from multigrain_server.asyncio_utils import background_task
from multigrain_server.backoff import Backoff
from multigrain_server.devices import EngineDevices
from multigrain_server.engines.config import ServingConfig
from multigrain_server.engines.engine import EngineProcess
from multigrain_server.engines.images import Quarantine
from multigrain_server.engines.launch import EngineSpec, Launch
from multigrain_server.engines.supervisor import EngineSupervisor, SupervisedModel
from multigrain_server.models.metrics import ModelInfo, ModelStatistics, ServingMetrics
from multigrain_server.models.registry import BundleEntry

_log = structlog.get_logger(__name__)

_RETRY_SECONDS = 1.0


class ModelState(Enum):
    """Whether a model answers. Names are those of ``multigrain.v1.ModelState``."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class LoadedModel(SupervisedModel):
    """Keeps an engine running for one bundle.

    Args:
        entry: the bundle, verified by the caller.
        runtime: one of ``multigrain.engine.settings.RUNTIMES``.
        config: limits of serving.
        metrics: where results and engines are counted.
        launch: starts the process of an engine.
        devices: leases the device that the engine computes on.
        on_change: called after each change of state.

    Attributes:
        label: "name@version".
        heads: of the bundle, by resolution; the first is the default.
        state: whether it answers.
        message: why it does not; "" if it does.
        load_seconds: how long the newest engine took to load.
        restarts: engines that ended by themselves.
        statistics: of its requests, since it was loaded.
        last_used: when it was last routed to, on the clock of ``time.monotonic``.
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
        self.label = str(entry.version)
        self.heads = {head.resolution: head for head in entry.manifest.heads}
        self.runtime = runtime
        self.state = ModelState.LOADING
        self.message = ""
        self.load_seconds = 0.0
        self.restarts = 0
        self.statistics = ModelStatistics()
        self.last_used = time.monotonic()
        self._config = config
        self._metrics = metrics
        self._launch = launch
        self._devices = devices
        self._on_change = on_change
        self._quarantine = Quarantine()
        self._backoff = Backoff(config.restart_backoff_seconds, config.restart_backoff_max_seconds)
        self._engine: EngineProcess | None = None
        self._supervisor: EngineSupervisor | None = None
        self._draining: dict[asyncio.Task[None], EngineProcess] = {}
        self._ended = False

    @property
    def engine(self) -> EngineProcess:
        """The engine that answers. Raises UNAVAILABLE while there is none, with a delay for a
        retry unless the model stays failed until it is loaded again."""
        if self.state is ModelState.READY and self._engine is not None:
            return self._engine
        text = f"{self.label} is {self.state.value}"
        if self.message:
            text += f" ({self.message})"
        if self.state is ModelState.FAILED and self._supervisor is None:
            raise MultigrainError(
                ErrorKind.UNAVAILABLE, f"{text}: it is not retried; LoadModel loads it again"
            )
        raise MultigrainError(
            ErrorKind.UNAVAILABLE,
            f"{text}: try again",
            retry_after=max(_RETRY_SECONDS, self._backoff.delay),
        )

    @property
    def runtime_description(self) -> str:
        """The runtime of its engine and why it was chosen; "" while there is no engine."""
        ready = self._engine.ready if self._engine is not None else None
        return f"{ready.runtime} ({ready.reason})" if ready is not None else ""

    @property
    def runtime_name(self) -> str:
        """The runtime of its engine, as a request may name it; "" while there is no engine."""
        ready = self._engine.ready if self._engine is not None else None
        return ready.runtime_name if ready is not None else ""

    @property
    def runtime_speeds(self) -> Mapping[str, float]:
        """Images per second that its engine measured to choose the runtime; empty if it did not."""
        ready = self._engine.ready if self._engine is not None else None
        return ready.speeds if ready is not None else {}

    def resident_bytes(self) -> int:
        """Memory that its engine holds; 0 while there is none."""
        engine = self._engine
        return engine.resident_bytes() if engine is not None else 0

    async def load(self) -> None:
        """Starts the first engine.

        Raises:
            MultigrainError: why it could not be loaded, or UNAVAILABLE if it was ended meanwhile.
                It cannot be loaded again then.
        """
        started = time.monotonic()
        self._set(ModelState.LOADING, "")
        self._engine = await self._keep(await self._start(self.runtime))
        self.load_seconds = time.monotonic() - started
        self._metrics.model_load_seconds.observe(self.load_seconds)
        self._set(ModelState.READY, "")
        self._log_engine("model loaded", self._engine, seconds=round(self.load_seconds, 3))
        self._supervise(self._engine)

    def fail(self, message: str) -> None:
        """Sets why it could not be loaded."""
        self._set(ModelState.FAILED, message)

    async def switch_runtime(self, runtime: str) -> None:
        """Switches to a new engine without a gap; on failure the old one stays.

        Raises:
            MultigrainError: why the new engine could not be loaded.
        """
        started = time.monotonic()
        engine = await self._keep(await self._start(runtime))
        self.load_seconds = time.monotonic() - started
        await self._end_supervisor()
        old, self._engine = self._engine, engine
        self.runtime = runtime
        self._set(ModelState.READY, "")
        self._log_engine("runtime switched", engine, seconds=round(self.load_seconds, 3))
        self._supervise(engine)
        if old is not None:
            # In a task: the caller may be canceled, and the old engine must end anyway.
            task = background_task(_end(old, self._config.drain_seconds))
            self._draining[task] = old
            task.add_done_callback(self._draining.pop)

    async def end(self, drain_seconds: float) -> None:
        """Drains: takes no more images, lets those in flight finish, ends the engine.

        May be called again with less time, while it waits.
        """
        self._ended = True
        self._set(ModelState.DRAINING, "")
        await self._end_supervisor()
        engines = [engine for engine in (self._engine, *self._draining.values()) if engine]
        await asyncio.gather(*(_end(engine, drain_seconds) for engine in engines))
        self._engine = None
        self._devices.release(self.label)
        self._set(ModelState.UNLOADED, "")
        _log.info("model unloaded", model=self.label)

    # SupervisedModel

    async def start_engine(self) -> EngineProcess:
        # At normal priority: requests wait for it. With the runtime of the engine that ended: its
        # vectors must agree with those before, and requests do not wait for a measurement.
        return await self._start(self.runtime_name or self.runtime, low_priority=False)

    def engine_ended(self, reason: str) -> None:
        self.restarts += 1
        self._metrics.engine_restarts.inc()
        self._set(ModelState.FAILED, f"its engine ended ({reason}) and is being replaced")

    def engine_delayed(self, reason: str) -> None:
        self._set(ModelState.FAILED, reason)

    def engine_replaced(self, engine: EngineProcess) -> None:
        self._engine = engine
        self._set(ModelState.READY, "")
        self._log_engine("engine replaced", engine, restarts=self.restarts)

    def _log_engine(self, event: str, engine: EngineProcess, **fields: float) -> None:
        ready = engine.ready
        runtime = ready.runtime if ready is not None else ""
        measures = ready.sandbox if ready is not None else ()
        restricted = [measure.name for measure in measures if measure.active]
        _log.info(
            event,
            model=self.label,
            pid=engine.pid,
            runtime=runtime,
            sandbox=",".join(restricted) or "off",
            **fields,
        )
        if missing := SandboxReport(tuple(measures)).missing:
            reasons = "; ".join(map(str, missing))
            _log.warning(
                "engine is not restricted in all ways: multigrain-server doctor says why",
                model=self.label,
                missing=reasons,
            )

    async def _start(self, runtime: str, *, low_priority: bool = True) -> EngineProcess:
        environment = self._devices.acquire(self.label)
        spec = EngineSpec(self.label, self.entry.path, runtime, low_priority, environment)
        try:
            return await EngineProcess.start(
                spec, self._config, self._observe, self._launch, self._quarantine
            )
        except BaseException:
            # A model whose first engine cannot be started needs no device.
            if self._engine is None:
                self._devices.release(self.label)
            raise

    async def _keep(self, engine: EngineProcess) -> EngineProcess:
        """``engine``, unless :meth:`end` was called while it loaded: nobody would end it."""
        if self._ended:
            await engine.stop()
            self._devices.release(self.label)
            raise MultigrainError(
                ErrorKind.UNAVAILABLE, f"{self.label} was unloaded while it was being loaded"
            )
        return engine

    def _supervise(self, engine: EngineProcess) -> None:
        self._supervisor = EngineSupervisor(
            self.label,
            self,
            engine,
            self._backoff,
            self._config.restart_backoff_max_seconds,
        )

    async def _end_supervisor(self) -> None:
        if self._supervisor is not None:
            await self._supervisor.close()
            self._supervisor = None

    def _set(self, state: ModelState, message: str) -> None:
        self.state = state
        self.message = message
        version, ready = self.entry.version, self._engine.ready if self._engine else None
        info = None
        if ready is not None:
            runtime = ready.runtime.partition(" ")[0]
            info = ModelInfo(runtime, ready.precision, self._config.device)
        self._metrics.model_info(version.name, version.version, info)
        measures = ready.sandbox if ready is not None else None
        self._metrics.engine_sandbox(version.name, version.version, measures)
        self._on_change()

    def _observe(self, result: Result) -> None:
        """Metrics of one result."""
        self.statistics.computed(result)
        metrics, name = self._metrics, self.entry.version.name
        if result.where:
            metrics.cancelled_items.labels(result.where).inc()
        elif result.error is not None:
            metrics.items_failed.labels(_REASONS.get(result.error, "other")).inc()
        stages = metrics.stages(name)
        if result.decode_ns:
            stages.decode.observe(result.decode_ns / 1e9)
        if result.batch_items:
            stages.queue.observe(result.queue_ns / 1e9)
            stages.infer.observe(result.compute_ns / 1e9)
            if result.first_in_batch:
                metrics.batch(name, result.batch_items)


_REASONS = {
    ErrorKind.IMAGE_UNREADABLE: "decode",
    ErrorKind.IMAGE_FORMAT: "bad_format",
    ErrorKind.IMAGE_TOO_LARGE: "too_large",
    ErrorKind.NOT_FINITE: "nan",
    ErrorKind.IMAGE_HARMFUL: "harmful",
    ErrorKind.OVERLOADED: "memory",
}


async def _end(engine: EngineProcess, drain_seconds: float) -> None:
    """Waits for the images in flight for a limited time, then ends the process."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(drain_seconds):
            await engine.wait_idle()
    await engine.stop()

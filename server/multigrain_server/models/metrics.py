"""Statistics of a loaded model, and the Prometheus metrics of serving."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Literal, NamedTuple, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from multigrain.engine.protocol import Result
from multigrain.sandbox.apply import MEASURES, Measure
from multigrain_server.metrics.requests import Observations, QuickHistogram


@dataclass(slots=True)
class StageTimes:
    """Nanoseconds: the longest of a request's images in each stage."""

    decode: int = 0
    queue: int = 0
    compute: int = 0
    total: int = 0


@dataclass
class Duration:
    """``count`` events that took ``ns`` nanoseconds together."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns


@dataclass
class BatchTimes:
    """Forward passes of one size: ``infer`` of the passes, ``prepare`` of all their images."""

    prepare: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)


@dataclass
class ModelStatistics:
    """Counts and times since the model was loaded; they only grow.

    Durations count requests of all APIs. A stage of a request takes as long as the slowest of
    its images.

    Attributes:
        last_ms: when the last request was answered, in milliseconds of Unix time; 0 = never.
        images: answered ones.
        batches: by the number of images, forward passes.
    """

    last_ms: int = 0
    images: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    prepare: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    encode: Duration = field(default_factory=Duration)
    batches: dict[int, BatchTimes] = field(default_factory=dict)

    @property
    def executions(self) -> int:
        """Forward passes."""
        return sum(times.infer.count for times in self.batches.values())

    def answered(self, images: int, times: StageTimes) -> None:
        """Counts a request that was answered; ``images`` are those without an error."""
        self.last_ms = time.time_ns() // 1_000_000
        self.images += images
        self.success.add(times.total)
        self.queue.add(times.queue)
        self.prepare.add(times.decode)
        self.infer.add(times.compute)

    def computed(self, result: Result) -> None:
        """Counts an image of a forward pass."""
        if not result.batch_items:
            return
        times = self.batches.setdefault(result.batch_items, BatchTimes())
        times.prepare.ns += result.decode_ns
        if result.first_in_batch:
            times.prepare.count += 1
            times.infer.add(result.compute_ns)


class Stages(NamedTuple):
    """One series of a histogram for each stage."""

    admit: Observations
    decode: Observations
    queue: Observations
    infer: Observations
    encode: Observations


# 0.1 ms (an admission) to 60 s (a load), about 2.2 times apart.
_SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
_LOAD_SECONDS = (0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
_ITEMS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256)

Refusal = Literal[
    "too_many_items", "deadline", "late", "draining", "bytes", "queue_full", "decode_cost", "share"
]
DROPPED_IN = ("queue", "batch")


@dataclass(frozen=True)
class ModelInfo:
    """How a loaded model is computed, for example openvino, bf16, cpu."""

    runtime: str
    precision: str
    device: str


class ServingMetrics:
    """All metrics of serving, registered once. Histograms are in seconds or in images."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._stage = QuickHistogram(
            "multigrain_stage_seconds",
            "Time an image spends in each stage of serving.",
            ["model", "stage"],
            _SECONDS,
            registry,
        )
        self._batch = QuickHistogram(
            "multigrain_batch_items",
            "Images in a forward pass.",
            ["model"],
            _ITEMS,
            registry,
        )
        self._queue = Gauge(
            "multigrain_queue_items",
            "Images sent to the engine of a model and not answered yet.",
            ["model"],
            registry=registry,
        )
        self.inflight = Gauge(
            "multigrain_inflight_items",
            "Images admitted and not answered yet, over all models.",
            registry=registry,
        )
        self.inflight_bytes = Gauge(
            "multigrain_inflight_bytes",
            "Encoded bytes of the images in flight.",
            registry=registry,
        )
        self.inflight_decode_seconds = Gauge(
            "multigrain_inflight_decode_seconds",
            "Estimated CPU seconds to decode the images in flight.",
            registry=registry,
        )
        self._rejected = Counter(
            "multigrain_rejected_total",
            "Requests refused before anything was computed, by reason.",
            ["reason"],
            registry=registry,
        )
        self.items_failed = Counter(
            "multigrain_items_failed_total",
            "Images that failed individually, by reason.",
            ["reason"],
            registry=registry,
        )
        self.cancelled_items = Counter(
            "multigrain_cancelled_items_total",
            "Images canceled or past their deadline, by stage.",
            ["where"],
            registry=registry,
        )
        self.penalties = Counter(
            "multigrain_penalties_total",
            "Times that a client's images were moved behind all others, because one of them took "
            "too long to decode or crashed the decoder.",
            registry=registry,
        )
        self.cache_lookups = Counter(
            "multigrain_cache_lookups_total",
            "Lookups of images in the response cache, by result.",
            ["result"],
            registry=registry,
        )
        self.cache_bytes = Gauge(
            "multigrain_cache_bytes",
            "Bytes of results in the response cache.",
            registry=registry,
        )
        self.model_load_seconds = Histogram(
            "multigrain_model_load_seconds",
            "Time from LoadModel to the first answer.",
            buckets=_LOAD_SECONDS,
            registry=registry,
        )
        self._model_state = Gauge(
            "multigrain_model_state",
            "1 for the current state of each model version.",
            ["model", "version", "state"],
            registry=registry,
        )
        self._model_info = Gauge(
            "multigrain_model_info",
            "1 for each loaded model version: runtime, precision and device.",
            ["model", "version", "runtime", "precision", "device"],
            registry=registry,
        )
        self._engine_sandbox = Gauge(
            "multigrain_engine_sandbox",
            "1 for each measure by which a model's engine is restricted, 0 for each other one.",
            ["model", "version", "measure"],
            registry=registry,
        )
        self.engine_restarts = Counter(
            "multigrain_engine_restarts_total",
            "Engines that ended unexpectedly and were replaced.",
            registry=registry,
        )
        # Counted without the lock of a series, and read when metrics are collected.
        self._queued: dict[str, int] = {}
        # Looking a series up by its labels takes longer than changing it.
        self._stages: dict[str, Stages] = {}
        self._engine_memory = Gauge(
            "multigrain_engine_memory_bytes",
            "Resident memory of a model's engine.",
            ["model", "version"],
            registry=registry,
        )
        self._states: dict[tuple[str, int], str] = {}
        self._infos: dict[tuple[str, int], ModelInfo] = {}
        # They exist from the start, so that rate() sees the first event as an increase from 0.
        for reason in get_args(Refusal):
            self._rejected.labels(reason)
        for where in DROPPED_IN:
            self.cancelled_items.labels(where)

    def refused(self, reason: Refusal) -> None:
        self._rejected.labels(reason).inc()

    def stages(self, model: str) -> Stages:
        """The time that a model's images spend in each stage, in seconds."""
        stages = self._stages.get(model)
        if stages is None:
            stages = Stages(*(self._stage.labels(model, stage) for stage in Stages._fields))
            self._stages[model] = stages
        return stages

    def batch(self, model: str, items: int) -> None:
        self._batch.labels(model).observe(items)

    def queue(self, model: str, change: int) -> None:
        if model not in self._queued:
            self._queued[model] = 0
            self._queue.labels(model).set_function(lambda: self._queued[model])
        self._queued[model] += change

    def engine_memory(self, name: str, version: int, size: int) -> None:
        self._engine_memory.labels(name, str(version)).set(size)

    def engine_gone(self, name: str, version: int) -> None:
        """Removes the memory series of an engine that has ended."""
        with contextlib.suppress(KeyError):
            self._engine_memory.remove(name, str(version))

    def model_info(self, name: str, version: int, info: ModelInfo | None) -> None:
        """Sets how a model version is computed; None removes its series."""
        before = self._infos.pop((name, version), None)
        if before is not None:
            self._model_info.remove(name, str(version), *astuple(before))
        if info is not None:
            self._infos[name, version] = info
            self._model_info.labels(name, str(version), *astuple(info)).set(1)

    def engine_sandbox(self, name: str, version: int, measures: Sequence[Measure] | None) -> None:
        """Sets the measures by which an engine is restricted; None removes their series."""
        for measure in MEASURES:
            if measures is None:
                with contextlib.suppress(KeyError):
                    self._engine_sandbox.remove(name, str(version), measure)
                continue
            active = any(one.name == measure and one.active for one in measures)
            self._engine_sandbox.labels(name, str(version), measure).set(active)

    def model_state(self, name: str, version: int, state: str | None) -> None:
        """Sets the state of a model version; None removes its series."""
        before = self._states.pop((name, version), None)
        if before is not None:
            self._model_state.remove(name, str(version), before)
        if state is not None:
            self._states[name, version] = state
            self._model_state.labels(name, str(version), state).set(1)

"""What a loaded model has done since it was loaded: counts and times that only grow."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from multigrain.engine.wire import Result
from multigrain_server.serving.request import Answer


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
    """Durations count requests, whatever API they came by; a stage of a request takes as long
    as the slowest of its images.

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

    def answered(self, answer: Answer) -> None:
        """Counts a request that got an answer."""
        times = answer.times
        self.last_ms = time.time_ns() // 1_000_000
        self.images += sum(item.error is None for item in answer.items)
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
        if result.leads_batch:
            times.prepare.count += 1
            times.infer.add(result.compute_ns)

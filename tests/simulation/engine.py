"""A simulated engine process: its decisions are the real ones, decoding and computing take time."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

from multigrain.engine.batching import (
    BatchLatencyEstimator,
    DropReason,
    Item,
    Limits,
    Schedule,
    short_batch,
)
from multigrain.engine.lanes import Lane
from multigrain.engine.protocol import (
    Cancel,
    FrameParser,
    InFlightImage,
    Ready,
    Result,
    Submit,
    encode,
)
from multigrain.errors import ErrorKind
from multigrain_server.engines.config import ServingConfig
from multigrain_server.engines.launch import EngineChild, EngineSpec
from tests.simulation.clock import VirtualClock

RESOLUTION = 224
_ERRORS = {
    DropReason.CANCELLED: ErrorKind.CANCELLED,
    DropReason.DEADLINE: ErrorKind.DEADLINE,
    DropReason.OVERLOADED: ErrorKind.OVERLOADED,
}
_pids = itertools.count(100)


@dataclass(frozen=True)
class Pace:
    """How fast an engine is.

    Attributes:
        rate: images per second in batches of the best size.
        best_batch: that size.
        fixed: part of the time of such a batch that a batch of one image takes as well.
        decoders: images that it decodes at a time.
        decode_share: decoding takes this part of the estimate.
        noise: standard deviation of the logarithm of each duration.
        load_seconds: until it is ready.
        transit: seconds of a message between daemon and engine.
    """

    rate: float
    best_batch: int = 4
    fixed: float = 0.1
    decoders: int = 2
    decode_share: float = 0.5
    noise: float = 0.05
    load_seconds: float = 2.0
    transit: float = 0.0003

    def seconds(self, images: int) -> float:
        """Seconds of a batch."""
        each = self.fixed + (1 - self.fixed) * images / self.best_batch
        return each * self.best_batch / self.rate


class EngineHost:
    """Where engines run: starts them, and changes their speed.

    Args:
        clock: of the simulation.
        rng: of the durations.
        pace: of its engines.
    """

    def __init__(self, clock: VirtualClock, rng: random.Random, pace: Pace) -> None:
        self.clock = clock
        self.rng = rng
        self.pace = pace
        self.factor = 1.0
        self.newest: SimulatedEngine | None = None
        self.computed = 0

    async def launch(self, spec: EngineSpec, config: ServingConfig) -> EngineChild:
        self.newest = SimulatedEngine(self, config)
        return self.newest

    def duration(self, seconds: float) -> float:
        """Of a batch, or of decoding an image, at the present speed."""
        return seconds / self.factor * self.rng.lognormvariate(0.0, self.pace.noise)


class _Socket:
    """The daemon's end of the socket of an engine: its transport."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self._engine = engine
        self._closed = False
        self.protocol: asyncio.Protocol | None = None

    def connect(self, protocol: asyncio.Protocol) -> _Socket:
        self.protocol = protocol
        protocol.connection_made(_Transport(self))
        self._engine.connected()
        return self

    def write(self, data: bytes) -> None:
        self._engine.later(self._engine.host.pace.transit, lambda: self._engine.received(data))

    def close(self) -> None:
        if not self._closed and self.protocol is not None:
            self._closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)
            self._engine.kill()

    def is_closing(self) -> bool:
        return self._closed


class _Transport(asyncio.Transport):
    """What a protocol expects of it."""

    def __init__(self, end: _Socket) -> None:
        super().__init__()
        self.write = end.write  # type: ignore[assignment, method-assign]
        self.close = self.abort = end.close  # type: ignore[method-assign]
        self.is_closing = end.is_closing  # type: ignore[method-assign]


class SimulatedEngine(EngineChild):
    """The process of an engine, without the process.

    Args:
        host: where it runs.
        config: of the daemon.
    """

    def __init__(self, host: EngineHost, config: ServingConfig) -> None:
        super().__init__()
        self.host = host
        self.socket = _Socket(self)  # type: ignore[assignment]
        self._config = config
        self._pid = next(_pids)
        self._parser = FrameParser(1 << 20)
        self._processing: list[InFlightImage] = []
        best = min(host.pace.best_batch, config.max_batch)
        latency = BatchLatencyEstimator(best)
        for size in sorted({1, best}):
            for _ in range(2):
                latency.record(size, host.duration(host.pace.seconds(size)))
        latency.short_batch = short_batch(latency.seconds(1), best, latency.seconds(best))
        self._latency = latency
        decoders = host.pace.decoders
        self._idle = {Lane.ORDINARY: decoders, Lane.LARGE: decoders, Lane.SLOW: 1}
        self._busy_items = 2 * best
        limits = Limits(config.max_batch, decode_ahead=self._busy_items + 2 * decoders + 1)
        self._schedule = Schedule(limits, {RESOLUTION: latency})

    # EngineChild

    @property
    def pid(self) -> int:
        return self._pid

    def resident_bytes(self) -> int:
        return 0

    def processing(self) -> list[InFlightImage]:
        return list(self._processing)

    def kill(self) -> None:
        if not self.ended.is_set():
            self.end_reason = "signal SIGKILL"
            self.ended.set()
            self.socket.close()

    # As multigrain.engine.serve and worker

    def connected(self) -> None:
        ready = Ready(
            runtime="simulated",
            reason="requested",
            resolutions=(RESOLUTION,),
            embedding_size=4,
            classes=0,
            max_batch=self._config.max_batch,
            load_seconds=self.host.pace.load_seconds,
            images_per_second=self._latency.images_per_second,
            busy_items=self._busy_items,
        )
        self.later(self.host.pace.load_seconds / self.host.factor, lambda: self._send(ready))

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Calls ``action`` unless the process has ended by then."""

        def act() -> None:
            if not self.ended.is_set():
                action()

        asyncio.get_running_loop().call_later(seconds, act)

    def received(self, data: bytes) -> None:
        now = self.host.clock.ns
        for frame in self._parser.feed(data):
            match frame.message:
                case Submit() as request:
                    request.resolution = request.resolution or RESOLUTION
                    self._schedule.submit(Item(request, frame.payload, received_ns=now), now)
                case Cancel(id=number):
                    item = self._schedule.cancel(number)
                    if item is not None:
                        self._drop(item, DropReason.CANCELLED)
        self._continue()

    def _continue(self) -> None:
        """Gives idle decoders and the idle network what the schedule has for them."""
        for lane in Lane:
            while self._idle[lane] and self._schedule.can_decode(lane):
                self._decode(lane)
        while not self._processing and self._schedule.can_compute():
            self._compute()

    def _decode(self, lane: Lane) -> None:
        item, reason = self._schedule.take_to_decode(lane, self.host.clock.ns)
        if reason is not None:
            self._drop(item, reason)
            return
        self._idle[lane] -= 1
        seconds = self.host.pace.decode_share * item.request.decode_seconds
        item.decode_ns = int(1e9 * self.host.duration(seconds))

        def decoded() -> None:
            self._idle[lane] += 1
            if not self._schedule.decoded(item):
                self._drop(item, DropReason.CANCELLED)
            self._continue()

        self.later(item.decode_ns / 1e9, decoded)

    def _compute(self) -> None:
        now = self.host.clock.ns
        batch, late = self._schedule.take_batch(now)
        for item, reason in late:
            self._drop(item, reason)
        if not batch:
            return
        self._processing = [InFlightImage(item.request.id, now) for item in batch]
        seconds = self.host.duration(self.host.pace.seconds(len(batch)))

        def computed() -> None:
            self._processing = []
            self.host.computed += len(batch)
            cancelled = self._schedule.done(batch, seconds)
            for item in batch:
                if item in cancelled:
                    self._drop(item, DropReason.CANCELLED)
                else:
                    self._send(Result(item.request.id, batch_items=len(batch)))
            self._continue()

        self.later(seconds, computed)

    def _drop(self, item: Item, reason: DropReason) -> None:
        self._send(Result(item.request.id, _ERRORS[reason], "dropped", "queue"))

    def _send(self, message: Ready | Result) -> None:
        data = encode(message)
        protocol = self.socket.protocol  # type: ignore[attr-defined]
        self.later(self.host.pace.transit, lambda: protocol.data_received(data))

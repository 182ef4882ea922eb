"""Fake engines in the test's own process: the real protocol, no network, faults on request."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from multigrain.engine.protocol import (
    Cancel,
    FrameParser,
    InFlightImage,
    Ready,
    Result,
    Submit,
    encode,
)
from multigrain.engine.shared_images import LargeImage, SharedImages
from multigrain.errors import ErrorKind
from multigrain_server.engines.config import ServingConfig
from multigrain_server.engines.launch import EngineChild, EngineSpec

HARMED = {
    "budget": ErrorKind.IMAGE_HARMFUL,
    "crash": ErrorKind.IMAGE_HARMFUL,
    "memory": ErrorKind.OVERLOADED,
    "abandoned": ErrorKind.CANCELLED,
}


@dataclass
class FakeEngines:
    """Starts engines whose faults the test decides.

    Attributes:
        deadly: images that crash an engine when it starts to compute them.
        large: images with which it runs out of memory then.
        hanging: images that it never finishes.
        harm: images whose decoding it ends, and why; "late": it answers them nevertheless.
        batch: images that it computes at a time.
        may_start: engines start while it is set.
        may_compute: images are computed while it is set.
        failures: errors of the next starts.
        children: all that were started, in order.
        specs: what each was started for.
        taken: how often each image was started.
        requests: all that were received.
        memory: bytes that each says it holds.
        canceled: Cancel messages that were received.
    """

    deadly: set[bytes] = field(default_factory=set)
    large: set[bytes] = field(default_factory=set)
    hanging: set[bytes] = field(default_factory=set)
    harm: dict[bytes, str] = field(default_factory=dict)
    batch: int = 8
    may_start: asyncio.Event = field(default_factory=asyncio.Event)
    may_compute: asyncio.Event = field(default_factory=asyncio.Event)
    failures: list[OSError] = field(default_factory=list)
    specs: list[EngineSpec] = field(default_factory=list)
    children: list[FakeChild] = field(default_factory=list)
    taken: Counter[bytes] = field(default_factory=Counter)
    requests: list[Submit] = field(default_factory=list)
    memory: int = 0
    canceled: int = 0

    def __post_init__(self) -> None:
        self.may_start.set()
        self.may_compute.set()

    async def launch(self, spec: EngineSpec, config: ServingConfig) -> EngineChild:
        await self.may_start.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.specs.append(spec)
        self.children.append(FakeChild(self))
        return self.children[-1]

    @property
    def running(self) -> list[FakeChild]:
        return [child for child in self.children if not child.ended.is_set()]


class FakeChild(EngineChild):
    """One of them. Its answer to an image is the vector of its first four bytes."""

    def __init__(self, engines: FakeEngines) -> None:
        super().__init__(SharedImages())
        self._engines = engines
        self.socket, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        self._waiting: list[tuple[Submit, bytes]] = []
        self._arrived = asyncio.Event()
        self._held: list[InFlightImage] = []
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._compute())]

    @property
    def pid(self) -> int:
        return os.getpid()

    def resident_bytes(self) -> int:
        return 0 if self.ended.is_set() else self._engines.memory

    def processing(self) -> list[InFlightImage]:
        return self._held

    def kill(self) -> None:
        self.die("signal SIGKILL")

    def die(self, reason: str) -> None:
        if self.ended.is_set():
            return
        for task in self._tasks:
            task.cancel()
        # A socket is closed only when nothing waits for it any more.
        asyncio.get_running_loop().call_soon(self._theirs.close)
        self.end_reason = reason
        if self.images is not None:
            self.images.close()
        self.ended.set()

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        parser = FrameParser(1 << 20)
        await self._send(
            Ready(
                runtime="fake 1.0",
                reason="requested",
                resolutions=(32,),
                embedding_size=4,
                classes=0,
                max_batch=8,
                load_seconds=0.0,
            )
        )
        while data := await loop.sock_recv(self._theirs, 65536):
            for frame in parser.feed(data):
                if isinstance(frame.message, Submit):
                    image = frame.payload
                    if frame.message.stored is not None:
                        assert self.images is not None
                        image = LargeImage(self.images.fd, frame.message.stored).read()
                    self._waiting.append((frame.message, image))
                    self._engines.requests.append(frame.message)
                    self._arrived.set()
                elif isinstance(frame.message, Cancel):
                    self._engines.canceled += 1
        self.die("exit code 0")

    async def _compute(self) -> None:
        while True:
            await self._arrived.wait()
            await self._engines.may_compute.wait()
            batch = self._waiting[: self._engines.batch]
            del self._waiting[: self._engines.batch]
            if not self._waiting:
                self._arrived.clear()
            self._held = [InFlightImage(request.id, time.monotonic_ns()) for request, _ in batch]
            images = [image for _, image in batch]
            self._engines.taken.update(images)
            if self._engines.deadly.intersection(images):
                self.die("signal SIGSEGV")
                return
            if self._engines.large.intersection(images):
                self.maybe_out_of_memory = True
                self.die("out of memory: killed by the kernel; the machine has 24 GiB")
                return
            if self._engines.hanging.intersection(images):
                await asyncio.Event().wait()
            for request, image in batch:
                harm = self._engines.harm.get(image, "")
                if harm in HARMED:
                    await self._send(Result(request.id, HARMED[harm], "because", harm=harm))
                    continue
                vector = np.frombuffer(image[:4].ljust(4), np.uint8).astype("<f4").tobytes()
                harm = "budget" if harm == "late" else ""
                answer = Result(id=request.id, vector_bytes=len(vector), harm=harm)
                await self._send(answer, vector)
            self._held = []

    async def _send(self, message: Ready | Result, payload: bytes = b"") -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._theirs, encode(message, len(payload)) + payload)

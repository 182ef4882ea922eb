"""Images in the hands of an engine."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from multigrain.engine.inflight import InFlightImage
from multigrain.engine.protocol import (
    Cancel,
    EmbeddingOptions,
    Frame,
    FrameParser,
    LoadFailed,
    Message,
    Ready,
    Result,
    Submit,
    WireError,
    encode,
)
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.engines.launch import EngineChild, EngineOrder, Launch, without_folders
from multigrain_server.engines.quarantine import RefusedImages
from multigrain_server.serving.config import ServingConfig


@dataclass(frozen=True)
class EngineResult:
    """One image's result; ``payload`` is laid out as :class:`multigrain.engine.protocol.Result`
    says."""

    result: Result
    payload: bytes


@dataclass(eq=False)
class PendingItem:
    """An image in work. Another engine takes it over, under an id of its own, if the first dies.

    Attributes:
        request: what was sent last; its id counts within the engine that it was sent to.
        image: the payload, kept for a second attempt. The request has it in memory anyway.
        future: the answer; done as well when nobody waits for one any more.
        channel: to the engine that has it now; None once it is answered.
        suspect: it was being decoded or computed when an engine died.
    """

    request: Submit
    image: bytes
    future: asyncio.Future[EngineResult]
    channel: EngineChannel | None = None
    suspect: bool = False

    @property
    def id(self) -> int:
        return self.request.id

    def answer(self, result: EngineResult) -> None:
        self.channel = None
        # A caller that was cancelled has a future that is done: nobody is waiting.
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: MultigrainError) -> None:
        self.channel = None
        if not self.future.done():
            self.future.set_exception(error)
            # Also when nobody will ever look.
            self.future.exception()


# MERGED: The images that one engine has in work.


class EngineItems:
    """By the ids that the engine knows them by."""

    def __init__(self) -> None:
        self._items: dict[int, PendingItem] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._last_ns = 0

    def __len__(self) -> int:
        return len(self._items)

    async def wait_idle(self) -> None:
        """Waits until there is none."""
        await self._idle.wait()

    def add(self, item: PendingItem) -> None:
        if not self._items:
            self._last_ns = time.monotonic_ns()
        self._items[item.id] = item
        self._idle.clear()

    def finish(self, item_id: int) -> PendingItem | None:
        """Takes out an image that is answered."""
        self._last_ns = time.monotonic_ns()
        item = self._items.pop(item_id, None)
        if not self._items:
            self._idle.set()
        return item

    def leave(self, held: Iterable[InFlightImage]) -> list[PendingItem]:
        """Takes out all that somebody waits for; those in ``held`` are marked as suspects."""
        ids = {one.item_id for one in held}
        left = [item for item in self._items.values() if not item.future.done()]
        for item in left:
            item.suspect = item.id in ids
        self._items.clear()
        self._idle.set()
        return left

    def seconds_stuck(self, held: Iterable[InFlightImage]) -> float:
        """For how long nothing was answered although there is work, or one image has been in
        the engine's hands, whichever is longer."""
        now = time.monotonic_ns()
        since = [one.since_ns for one in held]
        if self._items:
            since.append(self._last_ns)
        return (now - min(since, default=now)) / 1e9


# MERGED: The first message of an engine.


class EngineHello:
    """Comes once: that the engine answers, or why it cannot.

    Args:
        label: "name@version", for messages.
        timeout_seconds: that it may take.
    """

    def __init__(self, label: str, timeout_seconds: float) -> None:
        self._label = label
        self._timeout_seconds = timeout_seconds
        self._first: asyncio.Future[Ready | LoadFailed] = asyncio.get_running_loop().create_future()

    def received(self, message: Ready | LoadFailed) -> None:
        if not self._first.done():
            self._first.set_result(message)

    def ended(self, reason: str, last_words: str) -> None:
        """The engine has ended; whatever it had to say is said."""
        if not self._first.done():
            self._first.set_exception(
                MultigrainError(
                    ErrorKind.UNAVAILABLE,
                    f"the engine of {self._label} ended while loading ({reason}); "
                    f"its last words: {without_folders(last_words[:500])}",
                )
            )
            # Also read when nobody waits for it any more (stop during a load).
            self._first.exception()

    async def ready(self) -> Ready:
        """Waits for it.

        Raises:
            MultigrainError: what the engine says, or UNAVAILABLE if it ends or takes too long.
        """
        try:
            async with asyncio.timeout(self._timeout_seconds):
                first = await self._first
        except TimeoutError:
            raise MultigrainError(
                ErrorKind.UNAVAILABLE,
                f"{self._label} did not load within {self._timeout_seconds:g} s: raise "
                "serving.load_timeout_seconds, or look at the server's log",
            ) from None
        if isinstance(first, LoadFailed):
            message = without_folders(first.message)
            raise MultigrainError(first.error, f"{self._label}: {message}")
        return first


# MERGED: The daemon's end of an engine's socket.


_END_SECONDS = 0.5


class EngineChannel(asyncio.Protocol):
    """Frames over a stream transport, without a task of its own.

    Args:
        max_payload: bytes of a payload that is accepted.
        on_frame: called for each frame, in order.
        on_closed: called once, with the reason if the engine broke the protocol.
    """

    def __init__(
        self,
        max_payload: int,
        on_frame: Callable[[Frame], None],
        on_closed: Callable[[WireError | None], None],
    ) -> None:
        self._parser = FrameParser(max_payload)
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._transport: asyncio.Transport | None = None
        self._error: WireError | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._lost = asyncio.Event()

    def send(self, message: Message, payload: bytes = b"") -> None:
        """Sends at once, or queues; silently nothing after the end, which ``on_closed`` tells."""
        if self._transport is None or self._transport.is_closing():
            return
        # One write for both: joining costs less than a second system call up to some
        # hundred kilobytes, which is what images have.
        self._transport.write(encode(message, len(payload)) + payload)

    async def drained(self) -> None:
        """Waits while the engine reads too slowly for what was sent."""
        await self._may_write.wait()

    async def ended(self) -> None:
        """Waits, for a moment at most, until all that the other side had sent is read.

        Somebody else may hold the other end open: a process that the engine started.
        """
        if self._transport is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END_SECONDS):
                    await self._lost.wait()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._parser.feed(data):
                self._on_frame(frame)
        except WireError as error:
            self._error = error
            if self._transport is not None:
                self._transport.abort()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._may_write.set()
        self._lost.set()
        self._transport = None
        self._on_closed(self._error)


# MERGED: One engine: what is said to it, and the images it has in work.


_LOG = logging.getLogger(__name__)
_RETRY_SECONDS = 1.0
# A vector and the scores of all classes; far above any network's.
_MAX_PAYLOAD = 64 * 1024 * 1024


class EngineProcess:
    """Made by :meth:`start`; ends by :meth:`stop`, or by itself, which ``ended`` tells."""

    def __init__(
        self,
        child: EngineChild,
        label: str,
        config: ServingConfig,
        on_result: Callable[[Result], None],
        refused: RefusedImages,
    ) -> None:
        self._child = child
        self._label = label
        self._config = config
        self._on_result = on_result
        self._refused = refused
        self._ids = itertools.count(1)
        self._items = EngineItems()
        self._hello = EngineHello(label, config.load_timeout_seconds)
        self._channel = EngineChannel(_MAX_PAYLOAD, self._received, self._closed)
        self._stalled = False
        self._stopping = False
        self._watch = asyncio.create_task(self._follow())
        self._guard: asyncio.Task[None] | None = None
        #: Set when the process has ended, by itself or not, and its images are out of it.
        self.ended = asyncio.Event()
        self.end_reason = ""
        self.ready: Ready | None = None
        #: Takes the images in work of an engine that ends by itself; without one they fail.
        self.heir: Callable[[Sequence[PendingItem]], None] | None = None

    @classmethod
    async def start(
        cls,
        order: EngineOrder,
        config: ServingConfig,
        on_result: Callable[[Result], None],
        launch: Launch,
        refused: RefusedImages,
    ) -> EngineProcess:
        """Starts an engine and waits until it answers.

        Args:
            order: what for.
            config: limits.
            on_result: called for each result, whether or not somebody still waits for it.
            launch: starts its process.
            refused: images that never reach it.

        Raises:
            MultigrainError: what the engine says, or UNAVAILABLE if it ends or takes too long.
        """
        try:
            child = await launch(order, config)
        except OSError as error:
            # Of interest to a caller that waits, and no reason for a keeper to give up.
            raise MultigrainError(
                ErrorKind.UNAVAILABLE,
                f"the engine of {order.label} cannot be started ({error.strerror}): "
                "the host is short of memory, processes or open files",
                retry_after=_RETRY_SECONDS,
            ) from error
        engine = cls(child, order.label, config, on_result, refused)
        try:
            await asyncio.get_running_loop().create_unix_connection(
                lambda: engine._channel, sock=child.socket
            )
            engine.ready = await engine._hello.ready()
        except BaseException:
            await engine.stop()
            raise
        engine._guard = asyncio.create_task(engine._guard_progress())
        return engine

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def pending(self) -> int:
        return len(self._items)

    def resident_bytes(self) -> int:
        """See :meth:`EngineChild.resident_bytes`."""
        return self._child.resident_bytes()

    def submit(
        self,
        image: bytes,
        *,
        caller: int = 0,
        resolution: int,
        deadline_ns: int,
        vector: EmbeddingOptions | None,
        top_k: int,
        scores: bool = False,
        tensor: bool = False,
    ) -> PendingItem:
        """Sends one image.

        Its future fails with UNAVAILABLE if the engine ends first and no other takes it over.
        """
        if self.ended.is_set():
            raise self._gone()
        message = Submit(
            id=next(self._ids),
            caller=caller,
            resolution=resolution,
            deadline_ns=deadline_ns,
            vector=vector,
            top_k=top_k,
            scores=scores,
            tensor=tensor,
        )
        item = PendingItem(message, image, asyncio.get_running_loop().create_future())
        refusal = self._refused.refusal(image)
        if refusal is not None:
            self.refuse(item, refusal)
            return item
        self._send(item)
        return item

    def adopt(self, item: PendingItem) -> None:
        """Takes over an image of an engine that has ended."""
        if self.ended.is_set():
            item.fail(self._gone())
        elif not item.future.done():
            item.request = msgspec.structs.replace(item.request, id=next(self._ids))
            item.suspect = False
            self._send(item)

    def refuse(self, item: PendingItem, error: MultigrainError) -> None:
        """Answers an image with an error of its own, without the engine."""
        result = Result(id=item.id, error=error.kind, message=error.message)
        self._on_result(result)
        item.answer(EngineResult(result, b""))

    async def wait_idle(self) -> None:
        """Waits until no image is in work."""
        await self._items.wait_idle()

    async def drained(self) -> None:
        """Waits while the engine reads too slowly."""
        await self._channel.drained()

    def cancel(self, item: PendingItem) -> None:
        """Tells the engine that has the image now that nobody waits for it any more."""
        if item.channel is not None:
            item.channel.send(Cancel(id=item.id))

    async def stop(self) -> None:
        """Ends the process; images in work fail with UNAVAILABLE."""
        self._stopping = True
        self._channel.close()
        try:
            async with asyncio.timeout(2):
                await self.ended.wait()
        except TimeoutError:
            self._child.kill()
            await self.ended.wait()

    def _send(self, item: PendingItem) -> None:
        item.channel = self._channel
        self._items.add(item)
        self._channel.send(item.request, item.image)

    def _received(self, frame: Frame) -> None:
        match frame.message:
            case Result() as result:
                item = self._items.finish(result.id)
                self._on_result(result)
                if item is not None:
                    item.answer(EngineResult(result, frame.payload))
            case Ready() | LoadFailed() as first:
                self._hello.received(first)
            case _:
                raise WireError(f"a daemon takes no {type(frame.message).__name__}")

    def _closed(self, error: WireError | None) -> None:
        if error is not None:
            _LOG.error("engine of %s broke the protocol: %s", self._label, error)
        # Without its socket an engine is of no use; a healthy one is exiting by itself.
        asyncio.get_running_loop().call_later(1.0, self._child.kill)

    async def _guard_progress(self) -> None:
        """Ends an engine that hangs: a library that waits for ever would otherwise look like a
        healthy server."""
        limit = self._config.engine_stall_seconds
        while True:
            await asyncio.sleep(min(1.0, limit / 4))
            if self._items.seconds_stuck(self._child.held()) > limit:
                self._stalled = True
                self._child.kill()
                return

    async def _follow(self) -> None:
        """Waits for the engine's end, then hands on or fails what it had."""
        child = self._child
        await child.ended.wait()
        # What it had sent before its end counts; it may still be on its way.
        await self._channel.ended()
        self.end_reason = child.end_reason
        if self._stalled:
            self.end_reason = (
                f"an image was in work for more than {self._config.engine_stall_seconds:g} s, "
                "and it was killed"
            )
        if self._guard is not None:
            self._guard.cancel()
        self._channel.close()
        self._hello.ended(self.end_reason, child.last_words)
        left = self._items.leave(child.held())
        self.ended.set()
        if self.heir is not None and not (self._stopping or self._stalled):
            self.heir(left)
        else:
            for item in left:
                item.fail(self._gone())

    def _gone(self) -> MultigrainError:
        return MultigrainError(
            ErrorKind.UNAVAILABLE,
            f"the engine of {self._label} ended ({self.end_reason or 'closing'}) and is being "
            "replaced: try again",
            retry_after=_RETRY_SECONDS,
        )

"""One engine process: messages to and from it, and the images in flight in it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from dataclasses import dataclass

import msgspec
import structlog

from multigrain.engine.protocol import (
    Cancel,
    Frame,
    FrameParser,
    InFlightImage,
    LoadFailed,
    Message,
    Ready,
    Result,
    Submit,
    WireError,
    encode,
)
from multigrain.engine.shared_images import LEAST_BYTES, StoredImage
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.cost import DecodeCost
from multigrain_server.asyncio_utils import background_task
from multigrain_server.engines.config import ServingConfig
from multigrain_server.engines.images import ImageRequest, ImageResult, Quarantine, client_number
from multigrain_server.engines.launch import EngineChild, EngineSpec, Launch, redact_paths

_log = structlog.get_logger(__name__)

_NO_CONTEXT = Context()
_RETRY_SECONDS = 1.0
_STOP_SECONDS = 2.0
_READ_REST_SECONDS = 0.5
_MEMORY_ADVICE = (
    "raise the memory limit, unload other models, or lower serving.max_batch or "
    "serving.decode_threads"
)
# A vector and the scores of all classes; far above any network's.
_MAX_PAYLOAD = 64 * 1024 * 1024
# An engine keeps an image that nobody waits for until it reads that; so many times the queue.
_UNANSWERED_BYTES = 2
_UNANSWERED_ITEMS = 4


@dataclass(eq=False, slots=True)
class InFlight:
    """An image that was accepted and is not answered yet.

    If its engine dies, another one takes it over under an id of its own.

    Attributes:
        request: what it belongs to.
        image: the payload, kept for a second attempt. The request has it in memory anyway.
        cost: of decoding it; None if it is preprocessed.
        future: the result; also done when nobody waits for it any more.
        id: within the engine that has it.
        channel: to the engine that has it; None once it is answered.
        stored: where it lies in the memory that is shared with that engine, if it is large.
        suspect: it was being computed when an engine died.
    """

    request: ImageRequest
    image: bytes
    cost: DecodeCost | None
    future: asyncio.Future[ImageResult]
    id: int = 0
    channel: EngineChannel | None = None
    stored: StoredImage | None = None
    suspect: bool = False

    def answer(self, result: ImageResult) -> None:
        self.channel = None
        # A canceled caller has a future that is done: nobody is waiting.
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: MultigrainError) -> None:
        self.channel = None
        if not self.future.done():
            self.future.set_exception(error)
            # Marks it as read: nobody may be waiting for it.
            self.future.exception()

    def cancel(self) -> None:
        """Tells the engine that has it that nobody waits for the result any more."""
        if self.channel is not None:
            self.channel.send(Cancel(id=self.id))
        self.future.cancel()

    def message(self) -> Submit:
        """What the engine is sent, before the image."""
        request = self.request
        return Submit(
            id=self.id,
            caller=request.caller,
            resolution=request.resolution,
            deadline_ns=request.deadline_ns,
            vector=request.vector,
            top_k=request.top_k or 0,
            scores=request.scores,
            tensor=request.tensors,
            client=client_number(request.client),
            decode_seconds=self.cost.seconds if self.cost is not None else 0.0,
            decode_bytes=self.cost.bytes if self.cost is not None else 0,
            penalized=request.penalized,
            stored=self.stored,
        )

    def penalize(self) -> None:
        """Counts harm that the image did against its client."""
        if self.request.on_harm is not None:
            self.request.on_harm()


class InFlightTable:
    """The images in flight in one engine, by the ids that the engine knows them by.

    Attributes:
        bytes: of all of them, also of those that nobody waits for any more.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._items: dict[int, InFlight] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._last_ns = 0

    def __len__(self) -> int:
        return len(self._items)

    async def wait_idle(self) -> None:
        """Waits until there is none."""
        await self._idle.wait()

    def add(self, item: InFlight) -> None:
        if not self._items:
            self._last_ns = time.monotonic_ns()
        self._items[item.id] = item
        self.bytes += len(item.image)
        self._idle.clear()

    def finish(self, item_id: int) -> InFlight | None:
        """Removes an image that is answered."""
        self._last_ns = time.monotonic_ns()
        item = self._items.pop(item_id, None)
        if item is not None:
            self.bytes -= len(item.image)
        if not self._items:
            self._idle.set()
        return item

    def clear(self, processing: Iterable[InFlightImage]) -> list[InFlight]:
        """Removes all, and returns those that a caller waits for.

        Args:
            processing: images that the engine was computing, to be marked as suspects.
        """
        ids = {held.item_id for held in processing}
        left = [item for item in self._items.values() if not item.future.done()]
        for item in left:
            item.suspect = item.id in ids
        self._items.clear()
        self.bytes = 0
        self._idle.set()
        return left

    def seconds_stuck(self, processing: Iterable[InFlightImage]) -> float:
        """How long nothing was answered although images are in flight, or how long one image
        has been computed, whichever is longer."""
        now = time.monotonic_ns()
        since = [held.since_ns for held in processing]
        if self._items:
            since.append(self._last_ns)
        return (now - min(since, default=now)) / 1e9


class EngineChannel(asyncio.Protocol):
    """The daemon's end of an engine's socket: frames over a stream transport.

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
        self._unsent: list[bytes] = []
        self._lost = asyncio.Event()

    def send(self, message: Message, payload: bytes = b"") -> None:
        """Sends with all else of this turn of the event loop; does nothing once it is closed, which
        ``on_closed`` reports."""
        if self._transport is None or self._transport.is_closing():
            return
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush, context=_NO_CONTEXT)
        self._unsent.append(encode(message, len(payload)))
        if payload:  # asyncio of Python 3.12 never gets rid of an empty part, and spins
            self._unsent.append(payload)

    def _flush(self) -> None:
        # One write: joining costs less than more system calls up to some hundred kilobytes, which
        # is what images have.
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(self._unsent)
        self._unsent = []

    async def ended(self) -> None:
        """Waits until all that the engine had sent is read, for a moment at most.

        A process that the engine started may hold the other end open.
        """
        if self._transport is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_READ_REST_SECONDS):
                    await self._lost.wait()

    def close(self) -> None:
        self._flush()
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

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost.set()
        self._transport = None
        self._on_closed(self._error)


class EngineProcess:
    """Made by :meth:`start`; ends by :meth:`stop`, or by itself, which ``ended`` reports.

    Attributes:
        ended: set when the process has ended and its images are out of it.
        end_reason: why it ended.
        ready: the engine's first message; None until it has loaded.
        on_orphans: takes the images in flight of an engine that ends by itself; without it
            they fail.
    """

    def __init__(
        self,
        child: EngineChild,
        label: str,
        config: ServingConfig,
        on_result: Callable[[Result], None],
        quarantine: Quarantine,
    ) -> None:
        self._child = child
        self._label = label
        self._config = config
        self._on_result = on_result
        self._quarantine = quarantine
        self._log = _log.bind(model=label, pid=child.pid)
        self._ids = itertools.count(1)
        self._in_flight = InFlightTable()
        self._first: asyncio.Future[Ready | LoadFailed] = asyncio.get_running_loop().create_future()
        self._channel = EngineChannel(_MAX_PAYLOAD, self._received, self._closed)
        self._stalled = False
        self._stopping = False
        self._watch = background_task(self._follow())
        self._guard: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()
        self.end_reason = ""
        self.ready: Ready | None = None
        self.on_orphans: Callable[[Sequence[InFlight]], None] | None = None

    @classmethod
    async def start(
        cls,
        spec: EngineSpec,
        config: ServingConfig,
        on_result: Callable[[Result], None],
        launch: Launch,
        quarantine: Quarantine,
    ) -> EngineProcess:
        """Starts an engine and waits until it has loaded its model.

        Args:
            spec: the model, and how to run it.
            config: limits.
            on_result: called for each result, whether or not a caller still waits for it.
            launch: starts the process.
            quarantine: images that never reach the engine.

        Raises:
            MultigrainError: what the engine says; OVERLOADED if memory runs out; UNAVAILABLE if it
                ends otherwise or takes too long.
        """
        try:
            child = await launch(spec, config)
        except OSError as error:
            # A supervisor retries after this error; a caller sees it.
            raise MultigrainError(
                ErrorKind.UNAVAILABLE,
                f"the engine of {spec.label} cannot be started ({error.strerror}): "
                "the host is short of memory, processes or open files",
                retry_after=_RETRY_SECONDS,
            ) from error
        engine = cls(child, spec.label, config, on_result, quarantine)
        try:
            # Its callbacks run in the context in which it was made.
            await background_task(engine._connect())
            engine.ready = await engine._wait_ready()
        except BaseException:
            await engine.stop()
            raise
        engine._guard = background_task(engine._guard_progress())
        return engine

    async def _connect(self) -> None:
        await asyncio.get_running_loop().create_unix_connection(
            lambda: self._channel, sock=self._child.socket
        )

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def in_flight(self) -> int:
        """Images that it has not answered."""
        return len(self._in_flight)

    def resident_bytes(self) -> int:
        """See :meth:`EngineChild.resident_bytes`."""
        return self._child.resident_bytes()

    def submit(
        self, request: ImageRequest, image: bytes, cost: DecodeCost | None = None
    ) -> InFlight:
        """Sends one image of a request.

        Args:
            request: that it belongs to.
            image: encoded, or preprocessed.
            cost: of decoding it.

        Its future fails with UNAVAILABLE if the engine ends first and no other takes it over.

        Raises:
            MultigrainError: UNAVAILABLE if the engine has ended; OVERLOADED if it has not yet
                dropped too many images that were canceled.
        """
        if self.ended.is_set():
            raise self._gone()
        table, config = self._in_flight, self._config
        if table and (
            len(table) >= _UNANSWERED_ITEMS * config.queue_items
            or table.bytes + len(image) > _UNANSWERED_BYTES * config.queue_bytes
        ):
            # Admission counts what callers wait for. This has memory, too.
            raise MultigrainError(
                ErrorKind.OVERLOADED,
                f"the engine of {self._label} has not yet dropped {len(table)} images, most of "
                "which were canceled",
                retry_after=_RETRY_SECONDS,
            )
        item = InFlight(request, image, cost, asyncio.get_running_loop().create_future())
        self._send_unless_refused(item)
        return item

    def adopt(self, item: InFlight) -> None:
        """Takes over an image of an engine that has ended."""
        if self.ended.is_set():
            item.fail(self._gone())
        elif not item.future.done():
            self._send_unless_refused(item)

    def quarantine(self, item: InFlight) -> None:
        """Refuses an image with which the engine has ended, and answers its caller."""
        if self._child.maybe_out_of_memory:
            digest = self._quarantine.add_out_of_memory(item.image, self.end_reason)
            self._log.error("not enough memory for an image", sha256=digest, reason=self.end_reason)
        else:
            what = "hung" if self._stalled else "crashed"
            digest = self._quarantine.add(
                item.image,
                f"the process that computed it {what} twice; do not send it again",
            )
            self._log.error(
                "image ended the engine twice and is quarantined",
                sha256=digest,
                reason=self.end_reason,
            )
            item.penalize()
        self._refuse(item, self._quarantine.error(digest))

    async def wait_idle(self) -> None:
        """Waits until no image is in flight."""
        await self._in_flight.wait_idle()

    async def stop(self) -> None:
        """Ends the process; images in flight fail with UNAVAILABLE."""
        self._stopping = True
        self._channel.close()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self.ended.wait()
        except TimeoutError:
            self._child.kill()
            await self.ended.wait()

    def _send_unless_refused(self, item: InFlight) -> None:
        refusal = self._quarantine.refusal(item.image)
        if refusal is not None:
            self._refuse(item, refusal)
            return
        item.id = next(self._ids)
        item.channel = self._channel
        images = self._child.images
        item.stored = None
        if images is not None and len(item.image) >= LEAST_BYTES:
            item.stored = images.put(item.image)
        self._in_flight.add(item)
        self._channel.send(item.message(), item.image if item.stored is None else b"")

    def _refuse(self, item: InFlight, error: MultigrainError) -> None:
        """Answers an image with an error of its own, without the engine."""
        result = ImageResult.failed(error.kind, error.message)
        self._on_result(result.reply)
        item.answer(result)

    def _received(self, frame: Frame) -> None:
        match frame.message:
            case Result() as reply:
                item = self._in_flight.finish(reply.id)
                if item is not None and item.stored is not None and self._child.images is not None:
                    self._child.images.remove(item.stored)
                if item is not None and reply.harm:
                    reply = self._harmed(item, reply)
                self._on_result(reply)
                if item is not None:
                    item.answer(ImageResult(reply, frame.payload))
            case Ready() | LoadFailed() as first:
                if not self._first.done():
                    self._first.set_result(first)
            case _:
                raise WireError(
                    f"unexpected message from an engine: {type(frame.message).__name__}"
                )

    def _harmed(self, item: InFlight, reply: Result) -> Result:
        """Remembers an image whose decoding was ended; the engine's answer, with its hash."""
        if reply.harm == "memory":
            digest = self._quarantine.add_out_of_memory(item.image, reply.message)
        else:
            item.penalize()
            if reply.error is not ErrorKind.IMAGE_HARMFUL:
                return reply  # there is an answer, or nobody waited for one
            digest = self._quarantine.add(item.image, reply.message)
        self._log.warning("decoding ended", reason=reply.harm, sha256=digest)
        return msgspec.structs.replace(reply, message=self._quarantine.error(digest).message)

    def _closed(self, error: WireError | None) -> None:
        if error is not None:
            self._log.error("engine protocol error", reason=str(error))
        # Without its socket an engine is of no use; a healthy one is exiting by itself.
        asyncio.get_running_loop().call_later(1.0, self._child.kill)

    async def _wait_ready(self) -> Ready:
        timeout = self._config.load_timeout_seconds
        try:
            async with asyncio.timeout(timeout):
                first = await self._first
        except TimeoutError:
            raise MultigrainError(
                ErrorKind.UNAVAILABLE,
                f"{self._label} did not load within {timeout:g} s: raise "
                "serving.load_timeout_seconds, or look at the server's log",
            ) from None
        if isinstance(first, LoadFailed):
            message = redact_paths(first.message)
            raise MultigrainError(first.error, f"{self._label}: {message}")
        return first

    async def _guard_progress(self) -> None:
        """Kills an engine that hangs: a library that waits forever would otherwise look like a
        healthy server."""
        limit = self._config.engine_stall_seconds
        while True:
            await asyncio.sleep(min(1.0, limit / 4))
            if self._in_flight.seconds_stuck(self._child.processing()) > limit:
                self._stalled = True
                self._child.kill()
                return

    async def _follow(self) -> None:
        """Waits for the engine's end, then hands over or fails its images in flight."""
        child = self._child
        await child.ended.wait()
        # What it had sent before its end counts; it may still be on its way.
        await self._channel.ended()
        self.end_reason = child.end_reason
        if self._stalled:
            self.end_reason = (
                f"killed: an image was in flight for more than "
                f"{self._config.engine_stall_seconds:g} s"
            )
        if self._guard is not None:
            self._guard.cancel()
        self._channel.close()
        if not self._first.done():
            self._first.set_exception(self._load_failure())
            # Marks it as read: nobody waits for it if the load was stopped.
            self._first.exception()
        left = self._in_flight.clear(child.processing())
        self.ended.set()
        if self.on_orphans is not None and not self._stopping:
            self.on_orphans(left)
        else:
            for item in left:
                item.fail(self._gone())

    def _load_failure(self) -> MultigrainError:
        child = self._child
        text = f"the engine of {self._label} ended while loading ({self.end_reason})"
        if child.last_output:
            text += f"; its last output: {redact_paths(child.last_output[:500])}"
        if child.out_of_memory:
            return MultigrainError(ErrorKind.OVERLOADED, f"{text}; {_MEMORY_ADVICE}")
        return MultigrainError(ErrorKind.UNAVAILABLE, text)

    def _gone(self) -> MultigrainError:
        return MultigrainError(
            ErrorKind.UNAVAILABLE,
            f"the engine of {self._label} ended ({self.end_reason or 'closing'}) and is being "
            "replaced: try again",
            retry_after=_RETRY_SECONDS,
        )

"""One engine: what is said to it, and the images it has in work."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from multigrain.engine.wire import (
    Cancel,
    Frame,
    Hold,
    LoadFailed,
    Ready,
    Result,
    Submit,
    VectorWants,
    WireError,
)
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.serving.config import ServingConfig
from multigrain_server.serving.engine_channel import EngineChannel
from multigrain_server.serving.engine_child import EngineChild, EngineOrder, Launch
from multigrain_server.serving.engine_hello import EngineHello
from multigrain_server.serving.engine_item import EngineResult, PendingItem
from multigrain_server.serving.engine_items import EngineItems
from multigrain_server.serving.refused_images import RefusedImages

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
        vector: VectorWants | None,
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
            item.request = replace(item.request, id=next(self._ids))
            item.suspect = False
            self._send(item)

    def refuse(self, item: PendingItem, error: MultigrainError) -> None:
        """Answers an image with an error of its own, without the engine."""
        result = Result(id=item.id, kind=error.kind.value, message=error.message)
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

    def hold(self, items: int) -> None:
        """For tests: see :class:`multigrain.engine.wire.Hold`."""
        self._channel.send(Hold(items=items))

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

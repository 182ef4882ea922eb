"""The threads that have an engine's images decoded, and what they answer when that goes wrong."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from multigrain.engine.batcher import Batcher
from multigrain.engine.batching import DropReason, Item
from multigrain.engine.decoders import Budget, DecodeStoppedError, ImageDecoder, StopReason
from multigrain.engine.lanes import Lane
from multigrain.engine.shared_images import LargeImage
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.memory import exit_if_memory_exhausted

_LOG = logging.getLogger(__name__)

# An image may take this many times its estimate, within bounds, in seconds of CPU time. An estimate
# may be wrong, and the machine slower than the one on which the estimates were measured.
_FACTOR: Final = 10
_LEAST_SECONDS: Final = {Lane.ORDINARY: 1.0, Lane.LARGE: 3.0, Lane.SLOW: 3.0}
_MOST_SECONDS: Final = 6.0
# CPU time after which a decode that nobody waits for any more counts against its client, if it is
# more than was estimated: that an ordinary photo missed its deadline is no harm.
_ABANDONED_SECONDS: Final = 0.25

_ATTEMPTS: Final = 2
_ATTEMPTS_KILLED: Final = 5  # of an image whose processes are killed from outside

_LOG_SECONDS: Final = 1.0  # between two lines about decodes that were ended

_ADVICE: Final = "save the picture again as an ordinary JPEG or PNG"


class DecodeLanes:
    """One thread for each decoder: it takes the next image of its lane from the batcher.

    A first attempt that is ended, for whatever reason, costs ordinary images at most a second of
    one decoder: the second attempt is made in the slow lane, where there is more time and memory.

    Args:
        batcher: has the images.
        decoders: of each lane.
        wall_seconds: that decoding an image may take on a busy machine.
        refuse: answers an image with an error.
        drop: answers an image that nobody waits for.
    """

    def __init__(
        self,
        batcher: Batcher,
        decoders: Mapping[Lane, Sequence[ImageDecoder]],
        wall_seconds: float,
        refuse: Callable[[Item, MultigrainError], None],
        drop: Callable[[Item, DropReason], None],
    ) -> None:
        self._batcher = batcher
        self._wall_seconds = wall_seconds
        self._refuse_item = refuse
        self._drop_item = drop
        self._log_lock = threading.Lock()
        self._logged = -_LOG_SECONDS
        self._unlogged = 0
        self._threads = [
            threading.Thread(target=self._run, args=(lane, decoder), daemon=True)
            for lane in Lane
            for decoder in decoders[lane]
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def _run(self, lane: Lane, decoder: ImageDecoder) -> None:
        while (item := self._batcher.next_to_decode(lane)) is not None:
            start = time.monotonic_ns()
            try:
                self._preprocess(item, decoder)
            except DecodeStoppedError as stopped:
                item.decode_ns += time.monotonic_ns() - start
                self._stopped(item, stopped)
            except MultigrainError as error:
                item.decode_ns += time.monotonic_ns() - start
                self._refuse(item, error)
            except Exception as error:  # a decoder's defect costs this image, not the thread
                exit_if_memory_exhausted(error)
                item.decode_ns += time.monotonic_ns() - start
                _LOG.exception("image could not be decoded")
                message = f"the image could not be decoded ({type(error).__name__})"
                self._refuse(item, MultigrainError(ErrorKind.IMAGE_UNREADABLE, message))
            else:
                item.data = b""
                item.decode_ns += time.monotonic_ns() - start
                self._batcher.decoded(item)

    def _preprocess(self, item: Item, decoder: ImageDecoder) -> None:
        """Sets the pixels, or the tensor of an image that the caller preprocessed."""
        side = item.request.resolution
        if not item.request.tensor:
            budget = Budget(cpu_budget(item), self._wall_seconds)
            item.pixels = decoder.decode(item.data, side, budget, lambda: item.wanted)
            return
        data = item.data.read() if isinstance(item.data, LargeImage) else item.data
        tensor = np.frombuffer(data, "<f4").reshape(3, side, side)
        if not np.isfinite(tensor).all():
            message = "a preprocessed image has non-finite numbers"
            raise MultigrainError(ErrorKind.INVALID_FIELD, message)
        item.tensor = tensor

    def _stopped(self, item: Item, stopped: DecodeStoppedError) -> None:
        """Answers an image whose decoding was ended, or has it tried again."""
        reason = stopped.reason
        self._log_stopped(item, stopped)
        if reason is StopReason.UNWANTED:
            if stopped.cpu_seconds > max(_ABANDONED_SECONDS, item.request.decode_seconds):
                item.harm = "abandoned"
            self._batcher.decode_failed(item)
            late = DropReason.CANCELLED if item.cancelled else DropReason.DEADLINE
            self._drop_item(item, late)
            return
        item.attempts += 1
        if reason is StopReason.KILLED and item.attempts < _ATTEMPTS_KILLED:
            self._batcher.decode_later(item)
            return
        if reason in (StopReason.BUSY, StopReason.KILLED):
            self._batcher.decode_failed(item)
            self._drop_item(item, DropReason.OVERLOADED)
            return
        if reason is StopReason.BUDGET:
            item.harm = "budget"
        once_more = (StopReason.CRASH, StopReason.EXHAUSTED)
        repeatable = item.lane is not Lane.SLOW or reason in once_more
        if repeatable and item.attempts < _ATTEMPTS:
            self._batcher.decode_later(item)
            return
        self._refuse(item, self._final_error(item, stopped))

    def _log_stopped(self, item: Item, stopped: DecodeStoppedError) -> None:
        """Logs now and then: callers who leave could cause ten lines a second of each decoder."""
        with self._log_lock:
            now = time.monotonic()
            if now - self._logged < _LOG_SECONDS:
                self._unlogged += 1
                return
            others, self._logged, self._unlogged = self._unlogged, now, 0
        message = "decoding of image %d ended: %s (others since the last line: %d)"
        _LOG.warning(message, item.request.id, stopped.detail, others)

    def _final_error(self, item: Item, stopped: DecodeStoppedError) -> MultigrainError:
        """The error of an image that is not tried again; sets its harm.

        The daemon adds which image it is, and that it is quarantined.
        """
        match stopped.reason:
            case StopReason.MEMORY if stopped.error is not None:
                return stopped.error
            case StopReason.EXHAUSTED:
                item.harm = "memory"
                return MultigrainError(ErrorKind.OVERLOADED, stopped.detail)
            case StopReason.CRASH:
                item.harm = "crash"
            case _:
                item.harm = "budget"
        return MultigrainError(ErrorKind.IMAGE_HARMFUL, f"decoding it {stopped.detail}; {_ADVICE}")

    def _refuse(self, item: Item, error: MultigrainError) -> None:
        self._batcher.decode_failed(item)
        self._refuse_item(item, error)


def cpu_budget(item: Item) -> float:
    """Seconds of CPU time that decoding an image may take."""
    estimate = _FACTOR * item.request.decode_seconds
    if item.attempts:
        return _MOST_SECONDS
    return min(_MOST_SECONDS, max(_LEAST_SECONDS[item.lane], estimate))

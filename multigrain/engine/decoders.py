"""The processes in which an engine's images are decoded, seen from the engine."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NoReturn

import msgspec
import numpy as np
import psutil

from multigrain.engine.decoder_process import (
    MAX_MESSAGE,
    REQUEST,
    SIZE,
    End,
    Ended,
    Exchange,
    Parameters,
    Priority,
    Refused,
    Start,
    Started,
    receive,
    receive_exactly,
    send,
)
from multigrain.engine.runtimes.base import Pixels
from multigrain.engine.shared_images import LargeImage
from multigrain.errors import MultigrainError
from multigrain.memory import OomWatch
from multigrain.processes import describe_signal

_LOG = logging.getLogger(__name__)

# How often a decode that takes longer is looked at: its CPU time, and whether it is wanted.
_POLL_SECONDS: Final = 0.1
# Decoding needs nothing but CPU time: a decoder process that neither takes nor wants any hangs.
_ASLEEP_SECONDS: Final = 10.0
_ANSWER_SECONDS: Final = 5.0  # from the first byte of an answer, which is short, to the last
_START_SECONDS: Final = 1.0  # until the next attempt
_KEPT_BYTES: Final = 1 << 20  # of shared memory that a decoder process keeps between images


class StopReason(Enum):
    """Why the decoding of an image was ended.

    BUDGET: it took more CPU time than it may. ASLEEP: it waits for something. BUSY: it did not
    get enough CPU time. CRASH: its process has crashed. MEMORY: it needs more memory than it may.
    EXHAUSTED: the machine has no memory left. KILLED: from outside, which no image causes.
    UNWANTED: nobody waits for it any more.
    """

    BUDGET = "budget"
    ASLEEP = "asleep"
    BUSY = "busy"
    CRASH = "crash"
    MEMORY = "memory"
    EXHAUSTED = "exhausted"
    KILLED = "killed"
    UNWANTED = "unwanted"


class DecodeStoppedError(Exception):
    """The decoding of an image was ended, and its process with it, unless memory ran out.

    Attributes:
        reason: why.
        detail: for messages: completes "decoding it ...".
        error: of an image that needs too much memory: what the decoder itself said.
        cpu_seconds: that it has taken, if nobody waited for it any more.
    """

    def __init__(
        self,
        reason: StopReason,
        detail: str,
        error: MultigrainError | None = None,
        cpu_seconds: float = 0.0,
    ) -> None:
        super().__init__(detail)
        self.cpu_seconds = cpu_seconds
        self.reason = reason
        self.detail = detail
        self.error = error


@dataclass(frozen=True, slots=True)
class Budget:
    """What the decoding of one image may take.

    Attributes:
        cpu_seconds: of processor time; on a busy machine it may take longer.
        wall_seconds: in any case.
    """

    cpu_seconds: float
    wall_seconds: float


Wanted = Callable[[], bool]
"""Whether anybody still waits for an image; called often, from the thread that decodes."""


class ImageDecoder(ABC):
    """Decodes one image at a time; used from one thread."""

    @abstractmethod
    def decode(
        self, data: bytes | LargeImage, resolution: int, budget: Budget, wanted: Wanted
    ) -> Pixels:
        """The preprocessing that evaluation uses.

        Args:
            data: the encoded image.
            resolution: one that the bundle has.
            budget: beyond which it is ended.
            wanted: when it is false, the decoding is ended.

        Returns:
            uint8 (S, S, 3).

        Raises:
            MultigrainError: of a kind IMAGE_*.
            DecodeStoppedError: the decoding was ended.
        """


class Template:
    """The engine's side of the template process, which starts and ends decoder processes.

    Args:
        control: from :func:`multigrain.engine.decoder_process.start_template`.
        parameters: how images are decoded.
    """

    def __init__(self, control: socket.socket, parameters: Parameters) -> None:
        self.parameters = parameters
        self._control = control
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def start(self, channel: int, memory: int, max_memory: int, priority: Priority) -> int:
        """Starts a decoder process.

        Args:
            channel: descriptor of its end of a socket pair.
            memory: descriptor of the memory that is shared with it.
            max_memory: bytes that it may use beyond what it has at its start.
            priority: see :class:`multigrain.engine.decoder_process.Start`.

        Returns:
            Its process id.

        Raises:
            BlockingIOError: the host cannot start another process now.
        """
        order = Start(self.parameters, max_memory, priority)
        pid = int(self._request(order, Started, (channel, memory)).pid)
        if pid <= 0:
            raise BlockingIOError("no decoder process can be started")
        return pid

    def end(self, pid: int) -> int:
        """Ends a decoder process, if it has not ended; its exit code as ``subprocess`` has it."""
        return int(self._request(End(pid), Ended).code)

    def _watch(self) -> None:
        closed = select.poll()
        closed.register(self._control, 0)  # reports the other end's closing only
        closed.poll()
        _end_without_template()

    def _request(self, message: object, kind: Any, fds: Sequence[int] = ()) -> Any:
        try:
            with self._lock:
                send(self._control, message, fds)
                return receive(self._control, kind)[0]
        except (EOFError, OSError):
            _end_without_template()


def _end_without_template() -> NoReturn:
    """Ends this process: no image can be decoded any more. The daemon starts a new engine."""
    _LOG.error("the template of the decoder processes has ended")
    sys.stderr.flush()
    os._exit(1)


class DecoderProcess(ImageDecoder):
    """A decoder process, which is replaced whenever it has to be ended.

    Args:
        template: starts it.
        max_memory: bytes that it may use for one image.
        priority: see :class:`multigrain.engine.decoder_process.Start`.
    """

    def __init__(self, template: Template, max_memory: int, priority: Priority = "usual") -> None:
        self._template = template
        self._max_memory = max_memory
        self._priority = priority
        self._sizes = template.parameters.exchange_bytes
        self._memory_fd = Exchange.allocate(*self._sizes)
        self._exchange = Exchange(self._memory_fd, *self._sizes)
        self._oom_watch = OomWatch()
        self._channel: socket.socket | None = None
        self._poll = select.poll()
        self.pid = 0

    def start(self) -> None:
        """Starts the process, if there is none; waits until the host can start one.

        One that has ended between two images, or has sent something that is no answer, is
        replaced: the next image is not to blame.
        """
        if self._channel is not None and self._poll.poll(0):
            self.stop()
        while self._channel is None:
            ours, theirs = socket.socketpair()
            try:
                with theirs:
                    self.pid = self._template.start(
                        theirs.fileno(),
                        self._memory_fd,
                        self._max_memory,
                        self._priority,
                    )
            except BlockingIOError:
                ours.close()
                time.sleep(_START_SECONDS)
                continue
            # A captured process may begin an answer and never end it.
            ours.settimeout(_ANSWER_SECONDS)
            self._channel = ours
            self._poll = select.poll()
            self._poll.register(ours, select.POLLIN)

    def decode(
        self, data: bytes | LargeImage, resolution: int, budget: Budget, wanted: Wanted
    ) -> Pixels:
        self.start()
        output = 3 * resolution**2
        self._exchange.write_image(data)
        try:
            refused = self._answer(resolution, len(data), budget, wanted)
            if refused is None:
                pixels = np.frombuffer(self._exchange.read_pixels(output), np.uint8)
                return pixels.reshape(resolution, resolution, 3)
        except DecodeStoppedError:
            self.stop()
            raise
        except (EOFError, ConnectionError):
            raise self._died() from None
        except (msgspec.MsgspecError, TimeoutError) as error:
            self.stop()
            detail = "made its process answer with something that is no answer"
            raise DecodeStoppedError(StopReason.CRASH, detail) from error
        finally:
            used = [size if size > _KEPT_BYTES else 0 for size in (len(data), output)]
            self._exchange.release(*used)
        # Not in a variable: the exception has this call in its traceback, and a cycle of the two
        # would keep the image until the garbage collector finds it.
        if not refused.out_of_memory:
            raise MultigrainError(refused.kind, refused.message)
        reason = StopReason.EXHAUSTED if refused.exhausted else StopReason.MEMORY
        raise DecodeStoppedError(
            reason,
            "needs more memory than there is",
            MultigrainError(refused.kind, refused.message),
        )

    def stop(self) -> int:
        """Ends the process; how it ended. The next image gets a new one."""
        assert self._channel is not None
        code = self._template.end(self.pid)
        self._channel.close()
        self._channel, self.pid = None, 0
        return code

    def _answer(self, resolution: int, size: int, budget: Budget, wanted: Wanted) -> Refused | None:
        """Has the image in the shared memory decoded; None = its pixels are there."""
        channel = self._channel
        assert channel is not None
        channel.sendall(REQUEST.pack(resolution, size))
        if not self._poll.poll(1000 * _POLL_SECONDS):
            self._wait(budget, wanted)
        (length,) = SIZE.unpack(receive_exactly(channel, SIZE.size))
        if not length:
            return None
        if length > MAX_MESSAGE:
            raise msgspec.ValidationError(f"a message of {length} bytes")
        return msgspec.msgpack.decode(receive_exactly(channel, length), type=Refused)

    def _wait(self, budget: Budget, wanted: Wanted) -> None:
        """Waits for the answer to an image that takes long. Raises DecodeStoppedError."""
        # What it took before the first look is unknown, and short.
        start = progress = time.monotonic()
        first = last = cpu_seconds(self.pid)
        while True:
            now = time.monotonic()
            used = cpu_seconds(self.pid)
            # On a busy machine a process at a low priority may get none for a long time.
            if used > last or wants_cpu(self.pid):
                last, progress = used, now
            if not wanted():
                detail = "is not needed any more"
                raise DecodeStoppedError(StopReason.UNWANTED, detail, cpu_seconds=used - first)
            if used - first > budget.cpu_seconds:
                detail = f"takes more than {budget.cpu_seconds:.3g} s of CPU time"
                raise DecodeStoppedError(StopReason.BUDGET, detail)
            if now - progress > _ASLEEP_SECONDS:
                detail = f"waits for something for more than {_ASLEEP_SECONDS:g} s"
                raise DecodeStoppedError(StopReason.ASLEEP, detail)
            if now - start > budget.wall_seconds:
                detail = f"takes more than {budget.wall_seconds:.3g} s while the CPUs are busy"
                raise DecodeStoppedError(StopReason.BUSY, detail)
            if self._poll.poll(1000 * _POLL_SECONDS):
                return

    def _died(self) -> DecodeStoppedError:
        """Why the process has ended by itself."""
        code = self.stop()
        if code == -signal.SIGKILL and self._oom_watch.killed() is not False:
            self._oom_watch = OomWatch()
            limit = self._oom_watch.memory().describe_limit()
            return DecodeStoppedError(
                StopReason.EXHAUSTED, f"out of memory: killed by the kernel; {limit}"
            )
        if code == -signal.SIGKILL:
            return DecodeStoppedError(StopReason.KILLED, "was ended from outside (SIGKILL)")
        how = describe_signal(-code) if code < 0 else f"exit code {code}"
        return DecodeStoppedError(StopReason.CRASH, f"crashed its process ({how})")


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, of all its threads."""
    if sys.platform == "linux":
        # clock_getcpuclockid(3): the clock of a process by its number, without a file of /proc.
        with contextlib.suppress(OSError):
            return time.clock_gettime(~pid << 3 | 2)
    with contextlib.suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0


def wants_cpu(pid: int) -> bool:
    """Whether a process computes, or waits for nothing but a CPU."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_RUNNING
    except psutil.Error:
        return False

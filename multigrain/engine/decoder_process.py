"""The processes in which an engine's images are decoded, seen from inside.

A decoder of images runs native code on bytes from strangers. It may crash, compute for minutes or
want all memory, and a thread cannot be stopped: a process can. Before an engine loads any library
it forks a *template*, which imports what decoding needs and nothing else; the template forks the
*decoder processes*, each in a millisecond or two because it shares the template's memory. The
template runs no untrusted code. It also ends decoder processes and reaps them, so that the number
of an ended process is never used for another one.

Imports nothing heavy: :func:`start_template` is called before libraries start threads.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import mmap
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NoReturn

import msgspec

from multigrain import shared_memory
from multigrain.engine.shared_images import LargeImage
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.machine import THREAD_VARIABLES
from multigrain.memory import is_memory_exhausted, is_out_of_memory, release_freed_memory
from multigrain.processes import die_with_parent, end_first_without_memory
from multigrain.sandbox.apply import Sandbox, apply
from multigrain.sandbox.policies import decoder_sandbox, template_sandbox

_LOG = logging.getLogger(__name__)

MAX_MESSAGE: Final = 64 * 1024
SIZE: Final = struct.Struct("<I")
"""The size of a message; 0 = the pixels of the image are in the shared memory."""
REQUEST: Final = struct.Struct("<IQ")
"""Resolution and bytes of an encoded image, which is in the shared memory."""
_PAGE: Final = mmap.PAGESIZE
# CPU time; an image that takes more is large, and its memory goes back to the kernel at once.
_LARGE_SECONDS: Final = 0.05
_CONTROL_FD: Final = 3
_LIBRARY: Final = "multigrain.images.preprocess"

_LOW_NICENESS: Final = 10

Priority = Literal["usual", "low", "idle"]
Decode = Callable[[bytes, int], Any]


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How images are decoded.

    Attributes:
        input_bytes: that an engine receives for one image at most.
        max_bytes, max_pixels, max_decode_bytes, max_decode_seconds: as
            :class:`multigrain.images.limits.ImageLimits` has them.
        preprocessing: of each resolution, as JSON.
    """

    input_bytes: int
    max_bytes: int
    max_pixels: int
    max_decode_bytes: int
    max_decode_seconds: float
    preprocessing: dict[int, str]

    @property
    def exchange_bytes(self) -> tuple[int, int]:
        """Sizes of an :class:`Exchange`: of the largest encoded image, and of its pixels."""
        return self.input_bytes, 3 * max(self.preprocessing) ** 2


class Start(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Start a decoder process; answered by :class:`Started`. Two descriptors come with it.

    They are its end of a socket pair, and the shared memory of :class:`Exchange`.

    Attributes:
        parameters: how it decodes.
        max_memory: bytes of address space that it may use beyond what it has at its start.
        priority: "low": a tenth of the CPU time of a usual process where both want it; "idle":
            only what nothing else wants.
    """

    parameters: Parameters
    max_memory: int
    priority: Priority


class Started(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Attributes:
    pid: of the decoder process; 0 if the host cannot start another process now.
    """

    pid: int


class End(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """End a decoder process if it has not ended; answered by :class:`Ended`."""

    pid: int


class Ended(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Attributes:
    code: an exit code, or minus the number of the signal that ended it.
    """

    code: int


class Refused(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Why an image has no pixels.

    Attributes:
        kind, message: of the error.
        out_of_memory: an allocation failed.
        exhausted: then, whether even a small one failed: the machine has no memory left.
    """

    kind: ErrorKind
    message: str
    out_of_memory: bool = False
    exhausted: bool = False


def send(sock: socket.socket, message: object, fds: Sequence[int] = ()) -> None:
    """Sends one message of this module, with descriptors."""
    body = msgspec.msgpack.encode(message)
    socket.send_fds(sock, [SIZE.pack(len(body)) + body], list(fds))


def receive(sock: socket.socket, kind: Any, fds: int = 0) -> tuple[Any, list[int]]:
    """Receives one message of the type ``kind``, and at most ``fds`` descriptors with it.

    Raises:
        EOFError: the other side has ended.
        msgspec.MsgspecError: it sent something else.
    """
    prefix = b""
    received: list[int] = []
    if fds:
        prefix, received, _, _ = socket.recv_fds(sock, SIZE.size, fds)
    prefix += receive_exactly(sock, SIZE.size - len(prefix))
    (size,) = SIZE.unpack(prefix)
    if size > MAX_MESSAGE:
        raise msgspec.ValidationError(f"a message of {size} bytes")
    return msgspec.msgpack.decode(receive_exactly(sock, size), type=kind), received


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """Receives ``size`` bytes. Raises EOFError."""
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


class Exchange:
    """Memory that an engine shares with one decoder process: an encoded image, then its pixels.

    Args:
        fd: from :meth:`allocate`.
        input_bytes: of an encoded image at most.
        output_bytes: of its pixels at most.
    """

    def __init__(self, fd: int, input_bytes: int, output_bytes: int) -> None:
        self._output = _pages(input_bytes)
        self._memory = mmap.mmap(fd, self._output + _pages(output_bytes))

    @staticmethod
    def allocate(input_bytes: int, output_bytes: int) -> int:
        """A file descriptor of such memory."""
        return shared_memory.allocate(
            "multigrain-decode", _pages(input_bytes) + _pages(output_bytes)
        )

    def write_image(self, data: bytes | LargeImage) -> None:
        """Stores an encoded image."""
        if isinstance(data, LargeImage):
            data.copy_to(self._memory)
        else:
            self._memory[: len(data)] = data

    def read_image(self, size: int) -> bytes:
        """The encoded image."""
        return self._memory[:size]

    def write_pixels(self, pixels: bytes | memoryview) -> None:
        """Stores decoded pixels."""
        self._memory[self._output : self._output + len(pixels)] = pixels

    def read_pixels(self, size: int) -> bytes:
        """A copy of the decoded pixels."""
        return self._memory[self._output : self._output + size]

    def release(self, input_bytes: int, output_bytes: int) -> None:
        """Returns the memory of an image to the kernel."""
        if sys.platform == "linux":
            for start, size in ((0, input_bytes), (self._output, output_bytes)):
                if size:
                    self._memory.madvise(mmap.MADV_REMOVE, start, _pages(size))

    def close(self) -> None:
        self._memory.close()


def start_template(*, restricted: bool) -> socket.socket:
    """Forks the template process; returns the socket to it.

    Must be called while this process has one thread. The template ends with this process.

    Args:
        restricted: put the template and the decoder processes into sandboxes.
    """
    ours, theirs = socket.socketpair()
    engine = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork():
        theirs.close()
        return ours
    try:
        ours.detach()
        # The daemon's socket must close with the engine, and is nothing for a decoder.
        control = socket.socket(fileno=_keep_only(theirs.detach()))
        _run_template(control, engine, restricted)
    except BaseException:
        _LOG.exception("the template of decoder processes failed")
    finally:
        os._exit(1)


def _keep_only(fd: int) -> int:
    """Closes every descriptor but the standard ones and ``fd``, which gets another number."""
    kept = os.dup2(fd, _CONTROL_FD, inheritable=False)
    # Those that are open: in many containers the limit is a billion, and old kernels close them one
    # by one.
    for other in map(int, os.listdir("/dev/fd")):
        if other > _CONTROL_FD:
            with contextlib.suppress(OSError):  # the listing itself had one
                os.close(other)
    return kept


def _run_template(control: socket.socket, engine: int, restricted: bool) -> NoReturn:
    die_with_parent(engine)
    if restricted:
        apply(template_sandbox())
    # Composed once: it looks for paths.
    sandbox = decoder_sandbox() if restricted else None
    # One image is decoded by one thread. Libraries read these when they are loaded.
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    template = os.getpid()
    while True:
        try:
            request, fds = receive(control, Start | End, fds=2)
        except (EOFError, ConnectionError):
            os._exit(0)
        if isinstance(request, End):
            send(control, Ended(_end(request.pid)))
            continue
        _load_libraries()
        pid = _fork()
        if pid == 0:
            control.close()
            _run_decoder(template, socket.socket(fileno=fds[0]), fds[1], request, sandbox)
        for fd in fds:
            os.close(fd)
        send(control, Started(pid))


def _load_libraries() -> None:
    """Imports what decoding needs, once: decoder processes share it.

    Not before the first of them is wanted: an engine that cannot be loaded needs none, and the
    memory is the engine's until then.
    """
    if _LIBRARY not in sys.modules:
        importlib.import_module(_LIBRARY)
        gc.collect()
        gc.freeze()  # a collection in a decoder process would copy every page


def _fork() -> int:
    try:
        return os.fork()
    except OSError as error:
        _LOG.error("no decoder process can be started: %s", error.strerror)
        return -1


def _end(pid: int) -> int:
    """Ends a child process; why it had ended, if it had. Other processes are left alone."""
    if pid <= 0:
        return 0
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            # A process that a signal has ended keeps that signal as the reason.
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status)
    except ChildProcessError:  # not one of this process
        return 0


def _run_decoder(
    template: int, channel: socket.socket, memory_fd: int, order: Start, sandbox: Sandbox | None
) -> NoReturn:
    """Decodes images, one at a time, until the engine closes the socket."""
    try:
        die_with_parent(template)
        decode = image_decoder(order.parameters)
        exchange = Exchange(memory_fd, *order.parameters.exchange_bytes)
        os.close(memory_fd)
        _confine(order, sandbox)
        while True:
            resolution, size = REQUEST.unpack(receive_exactly(channel, REQUEST.size))
            _answer(channel, exchange, decode, resolution, size)
    except (EOFError, ConnectionError):
        os._exit(0)
    except BaseException:
        _LOG.exception("a decoder process failed")
    finally:
        sys.stderr.flush()
        os._exit(1)


def _confine(order: Start, sandbox: Sandbox | None) -> None:
    """Takes from this process what decoding does not need; before its first image."""
    # The kernel ends a decoder process before any engine, and an engine before the daemon.
    end_first_without_memory(os.getpid(), 1000)
    if order.priority == "low":
        os.nice(_LOW_NICENESS)
    if order.priority == "idle" and hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):  # a container may forbid it
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    if sys.platform == "linux":
        import resource

        with open("/proc/self/statm") as file:
            limit = int(file.read().split()[0]) * _PAGE + order.max_memory
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sandbox is not None:
        apply(sandbox)


def _answer(
    channel: socket.socket, exchange: Exchange, decode: Decode, resolution: int, size: int
) -> None:
    """Decodes the image that lies in the shared memory."""
    failure: Refused | None = None
    start = time.process_time()
    try:
        pixels = decode(exchange.read_image(size), resolution)
        exchange.write_pixels(memoryview(pixels).cast("B"))
    except Exception as error:  # decoders of damaged data raise all kinds of exceptions
        failure = refusal(error)
        if not isinstance(error, MultigrainError):
            _LOG.exception("image could not be decoded")
    if failure is None:
        pixels = None
        channel.sendall(SIZE.pack(0))
    else:
        # Not before the memory of the failed attempt is free.
        exhausted = failure.out_of_memory and is_memory_exhausted()
        send(channel, msgspec.structs.replace(failure, exhausted=exhausted))
    if time.process_time() - start > _LARGE_SECONDS:
        release_freed_memory()


def refusal(error: Exception) -> Refused:
    """What is said of an image whose decoding raised ``error``."""
    out_of_memory = is_out_of_memory(error)
    if isinstance(error, MultigrainError):
        return Refused(error.kind, error.message[:2000], out_of_memory)
    message = f"the image could not be decoded ({type(error).__name__})"
    return Refused(ErrorKind.IMAGE_UNREADABLE, message, out_of_memory)


def image_decoder(parameters: Parameters) -> Decode:
    """The preprocessing that evaluation uses: encoded bytes, resolution -> uint8 (S, S, 3)."""
    from multigrain.images.limits import ImageLimits
    from multigrain.images.parameters import Preprocessing
    from multigrain.images.preprocess import crop

    limits = ImageLimits(
        parameters.max_bytes,
        parameters.max_pixels,
        max_decode_bytes=parameters.max_decode_bytes,
        max_decode_seconds=parameters.max_decode_seconds,
    )
    preprocessing: Mapping[int, Preprocessing] = {
        resolution: Preprocessing.model_validate_json(text)
        for resolution, text in parameters.preprocessing.items()
    }

    def decode(data: bytes, resolution: int) -> Any:
        return crop(data, preprocessing[resolution], limits)

    return decode


def _pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE

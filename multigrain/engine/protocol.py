"""What the daemon and an engine exchange: messages over a Unix stream socket, and shared memory.

A frame is ``<header length: u32><payload length: u32><header><payload>``, little-endian. The
header is a MessagePack array that msgspec encodes and checks; the payload is raw bytes: an image
or the numbers of a result. Nothing is ever pickled. Both sides refuse a frame that is larger than
they allow, and close the socket on anything that is not a message: both are the same release.

:class:`InFlightSlots` says which images an engine is computing, for the daemon to read after a
crash. It is shared memory and not messages: a write costs less than a microsecond, the
reader needs no thread, and the last write survives the writer whatever killed it.
"""

from __future__ import annotations

import mmap
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from multigrain import shared_memory
from multigrain.engine.shared_images import StoredImage
from multigrain.errors import ErrorKind
from multigrain.sandbox.apply import Measure

Dtype = Literal["fp32", "fp16", "int8"]
Harm = Literal["", "budget", "crash", "memory", "abandoned"]
"""What decoding an image has done; see :class:`Result`."""

Unsigned = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
NonNegative = Annotated[float, msgspec.Meta(ge=0)]

MAX_HEADER = 64 * 1024
_PREFIX = struct.Struct("<II")
_READ_BYTES = 256 * 1024


class WireError(Exception):
    """The other side broke the protocol; the connection is lost."""


class EmbeddingOptions(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What is done to an embedding: whitening, then L2 normalization, then conversion."""

    normalize: bool = True
    dtype: Dtype = "fp32"
    whiten: bool = False


class _Message(
    msgspec.Struct,
    tag=True,
    array_like=True,  # smaller and faster than named fields; both ends are the same release
    forbid_unknown_fields=True,
    gc=False,
):
    """Base of all messages; the tag is the name of the class."""


class Submit(_Message):
    """One image to compute; answered by exactly one :class:`Result`.

    Attributes:
        id: chosen by the daemon, above 0.
        caller: images of one caller have the same number: engines are fair between callers.
        resolution: in pixels; 0 = the bundle's default.
        deadline_ns: on CLOCK_MONOTONIC, which all processes of a host share; 0 = none.
        vector: how to return the embedding; None = not at all.
        top_k: number of most probable classes; 0 = none.
        scores: return the probabilities of all classes.
        tensor: the payload is a preprocessed image, little-endian float32
            (3, resolution, resolution), and not an encoded one.
        client: images of one client have the same number: engines are fair between clients, and
            between the callers of each.
        decode_seconds: CPU time that decoding it takes, as estimated; 0 = unknown, and little.
        decode_bytes: memory that it takes then.
        penalized: its client has sent harmful images: it is decoded with CPU time that nobody
            else wants.
        stored: the image lies in shared memory, and there is no payload.
    """

    id: int
    caller: int = 0
    resolution: Unsigned = 0
    deadline_ns: int = 0
    vector: EmbeddingOptions | None = None
    top_k: Unsigned = 0
    scores: bool = False
    tensor: bool = False
    client: int = 0
    decode_seconds: NonNegative = 0.0
    decode_bytes: Unsigned = 0
    penalized: bool = False
    stored: StoredImage | None = None


class Result(_Message):
    """The answer for one image.

    The payload is the vector (``vector_bytes``), then ``classes`` int32 class ids and as many
    float32 probabilities, most probable first, then ``scores`` float32 probabilities in the order
    of the classes. All numbers are little-endian.

    Attributes:
        id: of the image.
        error: why there is no answer; None = success.
        message: the error's.
        where: how far a canceled or late image came.
        decode_ns, queue_ns, compute_ns: durations in nanoseconds.
        batch_items: images in its batch.
        first_in_batch: true for one result of each batch, by which batches are counted.
        vector_bytes: size of the vector in the payload.
        scale: of an int8 vector: value = byte * scale.
        classes: number of top classes in the payload.
        scores: number of probabilities in the payload.
        harm: the decoding was ended: it took more CPU time than it may ("budget"; then there may
            be an answer nevertheless), crashed its process twice ("crash"), took all memory
            ("memory"), or took long when nobody waited for it any more ("abandoned").
    """

    id: int
    error: ErrorKind | None = None
    message: str = ""
    where: Literal["", "queue", "batch"] = ""
    decode_ns: int = 0
    queue_ns: int = 0
    compute_ns: int = 0
    batch_items: int = 0
    first_in_batch: bool = False
    vector_bytes: Unsigned = 0
    scale: float = 0.0
    classes: Unsigned = 0
    scores: Unsigned = 0
    harm: Harm = ""


class Cancel(_Message):
    """The caller of image ``id`` no longer waits; the image is still answered."""

    id: int


class Ready(_Message):
    """The model is loaded. Sent once, before any result.

    Attributes:
        runtime: library, version, device and precision.
        reason: why this runtime was chosen.
        runtime_name: by which it can be requested, such as "openvino-int8".
        speeds: images per second of the runtimes to choose from; empty if there was no choice.
        resolutions: that the bundle serves.
        embedding_size: numbers in an embedding.
        classes: number of classes; 0 = none.
        max_batch: images in a batch at most.
        load_seconds: what loading took.
        precision: of the computation, see ``multigrain.bundle.reference``.
        images_per_second: as measured during the warm-up.
        busy_items: with this many images in flight the network is never idle.
        sandbox: the measures by which the engine is restricted; empty = it is not.
    """

    runtime: str
    reason: str
    resolutions: tuple[int, ...]
    embedding_size: int
    classes: int
    max_batch: int
    load_seconds: float
    precision: str = "f32"
    images_per_second: float = 0.0
    busy_items: int = 16
    sandbox: tuple[Measure, ...] = ()
    runtime_name: str = ""
    speeds: dict[str, float] = {}


class LoadFailed(_Message):
    """The bundle cannot be served; the engine exits after this message."""

    error: ErrorKind
    message: str


Message = Submit | Result | Cancel | Ready | LoadFailed

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


@dataclass(frozen=True, slots=True)
class Frame:
    """A message and its payload."""

    message: Message
    payload: bytes = b""


def encode(message: Message, payload_size: int = 0) -> bytes:
    """Prefix and header of a frame; ``payload_size`` raw bytes must follow."""
    header = _ENCODER.encode(message)
    return _PREFIX.pack(len(header), payload_size) + header


class FrameParser:
    """Turns a byte stream into frames, whatever pieces it arrives in.

    Args:
        max_payload: bytes; a frame that announces more raises :class:`WireError` at once,
            before any of it is stored.
    """

    def __init__(self, max_payload: int) -> None:
        self._max_payload = max_payload
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yields the frames that ``data`` completes. Raises WireError."""
        self._buffer += data
        position = 0
        try:
            while len(self._buffer) - position >= _PREFIX.size:
                header_size, payload_size = _PREFIX.unpack_from(self._buffer, position)
                if not 0 < header_size <= MAX_HEADER or payload_size > self._max_payload:
                    raise WireError(f"frame of {header_size} + {payload_size} bytes refused")
                start = position + _PREFIX.size
                end = start + header_size + payload_size
                if len(self._buffer) < end:
                    break
                with memoryview(self._buffer) as view:
                    header = bytes(view[start : start + header_size])
                    payload = bytes(view[start + header_size : end])
                position = end
                try:
                    message = _DECODER.decode(header)
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    raise WireError(f"not a message: {error}") from None
                yield Frame(message, payload)
        finally:
            # The remainder moves once per read, not once per frame.
            del self._buffer[:position]


class Connection:
    """The engine's end of the socket: blocking frames; any thread may send.

    Args:
        sock: connected stream socket.
        max_payload: largest payload that is accepted, in bytes.
    """

    def __init__(self, sock: socket.socket, max_payload: int) -> None:
        self._socket = sock
        self._parser = FrameParser(max_payload)
        self._send_lock = threading.Lock()

    def frames(self) -> Iterator[Frame]:
        """Yields every frame until the other side closes. Raises WireError."""
        while True:
            try:
                data = self._socket.recv(_READ_BYTES)
            except ConnectionError:
                return
            if not data:
                return
            yield from self._parser.feed(data)

    def send(self, message: Message, payload: bytes = b"") -> None:
        """Sends one frame."""
        self.send_all([Frame(message, payload)])

    def send_all(self, frames: Sequence[Frame]) -> None:
        """Sends frames in one write. If the peer is gone the reader notices it, not the sender."""
        data = b"".join(
            part
            for frame in frames
            for part in (encode(frame.message, len(frame.payload)), frame.payload)
        )
        with self._send_lock:
            try:
                self._socket.sendall(data)
            except (BrokenPipeError, ConnectionResetError):
                return


# Two int64 per slot: start time, then image id. They are aligned, so neither is ever half-written.
_SLOT_BYTES = 16


@dataclass(frozen=True)
class InFlightImage:
    """An image that has been computed since a moment on CLOCK_MONOTONIC."""

    item_id: int
    since_ns: int


class InFlightSlots:
    """A table in shared memory: a slot per image of a batch.

    Args:
        fd: of shared memory that :meth:`allocate` made; it can be closed afterwards.
        slots: the same number in both processes.
    """

    def __init__(self, fd: int, slots: int) -> None:
        self._memory = mmap.mmap(fd, slots * _SLOT_BYTES)
        self._numbers = memoryview(self._memory).cast("q")

    @staticmethod
    def allocate(slots: int) -> int:
        """A file descriptor of empty shared memory for ``slots`` slots."""
        return shared_memory.allocate("multigrain-inflight", slots * _SLOT_BYTES)

    def record(self, slot: int, item_id: int) -> None:
        """Records that work on an image begins. Ids are above 0."""
        self._numbers[2 * slot] = time.monotonic_ns()
        self._numbers[2 * slot + 1] = item_id

    def clear(self, slot: int) -> None:
        """Records that work on the slot's image has ended."""
        self._numbers[2 * slot + 1] = 0

    def images(self) -> list[InFlightImage]:
        """The images that are processed now, or were when the writer died."""
        numbers = self._numbers.tolist()
        return [
            InFlightImage(item_id, since_ns)
            for since_ns, item_id in zip(numbers[::2], numbers[1::2], strict=True)
            if item_id
        ]

    def close(self) -> None:
        """Unmaps the memory; nothing can be read afterwards."""
        self._numbers.release()
        self._memory.close()

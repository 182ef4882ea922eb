"""One image on its way through an engine: the request it belongs to, its result, quarantine."""

from __future__ import annotations

import hashlib
import itertools
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from multigrain.engine.protocol import EmbeddingOptions, Result
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.cost import DecodeCost
from multigrain.machine import available_memory

_QUARANTINED = 1024
_OUT_OF_MEMORY_SECONDS = 300

_callers = itertools.count(1)


def new_caller() -> int:
    """A number that no other caller has."""
    return next(_callers)


@lru_cache(maxsize=4096)
def client_number(client: str) -> int:
    """The number by which engines know a client; 0 = unknown."""
    if not client:
        return 0
    return int.from_bytes(hashlib.sha256(client.encode(errors="replace")).digest()[:7], "big")


@dataclass(slots=True)
class ImageRequest:
    """The images of one request. The service sets what it finds out: costs, penalty, caller.

    Attributes:
        model: "name", "name@version", an alias, or "" for the default model.
        images: encoded files.
        tensors: ``images`` are preprocessed instead: each a little-endian float32 tensor
            (3, resolution, resolution).
        resolution: side in pixels; 0 = the model's default.
        vector: how embeddings are to be returned; None = no embeddings.
        top_k: how many of the most probable classes to return, at most all; 0 = 5;
            None = no classes.
        scores: whether to return the probabilities of all classes.
        client: whom shares of the queue are counted for: the name of a token, or a host where there
            are no tokens.
        connection: of the client, as reported by gRPC.
        costs: of decoding each image; empty if they are preprocessed.
        penalized: the client has sent harmful images: its own wait behind all others.
        on_harm: called when one of the images has done harm, also if nobody waits for it any more.
        caller: from :func:`new_caller`. Engines compute the images of different callers in
            rotation, and all requests of a stream have one caller. 0 = a caller of its own.
        deadline_ns: on CLOCK_MONOTONIC; 0 = none.
        received_ns: when the request arrived, on the same clock.
    """

    model: str
    images: Sequence[bytes]
    tensors: bool = False
    resolution: int = 0
    vector: EmbeddingOptions | None = None
    top_k: int | None = None
    scores: bool = False
    client: str = ""
    connection: str = ""
    costs: Sequence[DecodeCost] = ()
    penalized: bool = False
    on_harm: Callable[[], None] | None = field(default=None, compare=False)
    caller: int = 0
    deadline_ns: int = 0
    received_ns: int = 0

    @property
    def whitens(self) -> bool:
        """Whether whitened embeddings are requested."""
        return self.vector is not None and self.vector.whiten


class ClassScore(NamedTuple):
    """A class of the model; ``label`` is "" where the model has no label for it."""

    class_id: int
    label: str
    probability: float


@dataclass(frozen=True)
class ImageResult:
    """The result of one image: an error, or what the request wanted.

    Attributes:
        reply: the engine's message.
        payload: laid out as :class:`multigrain.engine.protocol.Result` says.
    """

    reply: Result
    payload: bytes = b""

    @classmethod
    def failed(cls, kind: ErrorKind, message: str) -> ImageResult:
        """An error that was found without an engine."""
        return cls(Result(id=0, error=kind, message=message))

    @property
    def error(self) -> MultigrainError | None:
        """Why there is no result; None if there is one."""
        kind = self.reply.error
        return MultigrainError(kind, self.reply.message) if kind is not None else None

    @property
    def vector(self) -> bytes:
        """Little-endian numbers of the requested dtype; empty if none was requested."""
        return self.payload[: self.reply.vector_bytes]

    @property
    def scores(self) -> bytes:
        """Little-endian float32 probabilities in the order of the classes."""
        start = self.reply.vector_bytes + 8 * self.reply.classes
        return self.payload[start : start + 4 * self.reply.scores]

    def classes(self, labels: Sequence[str]) -> list[ClassScore]:
        """The requested classes, most probable first.

        Args:
            labels: of all classes of the model, or none.
        """
        count = self.reply.classes
        numbers = struct.unpack_from(f"<{count}i{count}f", self.payload, self.reply.vector_bytes)
        return [
            ClassScore(class_id, labels[class_id] if class_id < len(labels) else "", probability)
            for class_id, probability in zip(numbers[:count], numbers[count:], strict=True)
        ]


@dataclass(frozen=True)
class _Quarantined:
    """Why an image is refused.

    Attributes:
        error: what its callers get.
        until: on the monotonic clock; None = as long as the model is loaded.
        memory: bytes that engines could use at most; another number ends a limited refusal.
    """

    error: MultigrainError
    until: float | None = None
    memory: int = 0


class Quarantine:
    """The SHA-256 of the newest images that ended an engine: they are refused.

    A caller that retries such an image would otherwise end one engine after the other. An image
    for which there was not enough memory is no harmful one: it is refused for some minutes, or
    until the memory limit changes. While there is none, which is the normal case, nothing is
    hashed.

    Args:
        memory: returns the bytes that engines may use at most.
        clock: in seconds.
    """

    def __init__(
        self,
        memory: Callable[[], int] = available_memory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._memory = memory
        self._clock = clock
        self._images: OrderedDict[str, _Quarantined] = OrderedDict()

    def add(
        self,
        image: bytes,
        why: str = "it crashed the process that computed it; do not send it again",
    ) -> str:
        """Refuses an image that did harm; returns its hash, in hexadecimal.

        Args:
            image: encoded, or preprocessed.
            why: what it did, and what to do.
        """
        digest = hashlib.sha256(image).hexdigest()
        message = f"the image (SHA-256 {digest}) is quarantined: {why}"
        self._add(digest, _Quarantined(MultigrainError(ErrorKind.IMAGE_HARMFUL, message)))
        return digest

    def add_out_of_memory(self, image: bytes, reason: str) -> str:
        """Refuses an image for some minutes, because memory ran out with it.

        Args:
            image: encoded, or preprocessed.
            reason: how its process ended.

        Returns:
            The hash, in hexadecimal.
        """
        digest = hashlib.sha256(image).hexdigest()
        error = MultigrainError(
            ErrorKind.OVERLOADED,
            f"there was not enough memory for the image (SHA-256 {digest}): its process ended "
            f"twice, the second time with no other image ({reason}); raise the memory limit, "
            "unload other models, or lower serving.max_image_pixels or serving.decode_threads. "
            f"The image is refused for {_OUT_OF_MEMORY_SECONDS // 60} minutes, or until the limit "
            "changes",
        )
        until = self._clock() + _OUT_OF_MEMORY_SECONDS
        self._add(digest, _Quarantined(error, until, self._memory()))
        return digest

    def refusal(self, image: bytes) -> MultigrainError | None:
        """IMAGE_HARMFUL or OVERLOADED for an image that is refused; None for any other."""
        if not self._images:
            return None
        digest = hashlib.sha256(image).hexdigest()
        found = self._images.get(digest)
        if found is None:
            return None
        if found.until is not None and (
            self._clock() >= found.until or self._memory() != found.memory
        ):
            del self._images[digest]
            return None
        return found.error

    def error(self, digest: str) -> MultigrainError:
        """The error of an image that was added, by its hash."""
        return self._images[digest].error

    def _add(self, digest: str, image: _Quarantined) -> None:
        self._images[digest] = image
        self._images.move_to_end(digest)
        if len(self._images) > _QUARANTINED:
            self._images.popitem(last=False)

"""One image on its way through an engine: the request it belongs to, its result, quarantine."""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from multigrain.engine.protocol import EmbeddingOptions, Result
from multigrain.errors import ErrorKind, MultigrainError

_QUARANTINED = 1024

_callers = itertools.count(1)


def new_caller() -> int:
    """A number that no other caller has."""
    return next(_callers)


@dataclass(frozen=True)
class ImageRequest:
    """The images of one request.

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


class Quarantine:
    """The SHA-256 of the newest images that crashed an engine: they are refused.

    A caller that retries such an image would otherwise crash one engine after the other. While
    there is none, which is the normal case, nothing is hashed.
    """

    def __init__(self) -> None:
        self._hashes: OrderedDict[str, None] = OrderedDict()

    def add(self, image: bytes) -> str:
        """Returns the hash, in hexadecimal."""
        digest = hashlib.sha256(image).hexdigest()
        self._hashes[digest] = None
        self._hashes.move_to_end(digest)
        if len(self._hashes) > _QUARANTINED:
            self._hashes.popitem(last=False)
        return digest

    def refusal(self, image: bytes) -> MultigrainError | None:
        """The error of an image that is in quarantine; None for any other."""
        if not self._hashes:
            return None
        digest = hashlib.sha256(image).hexdigest()
        return self.error(digest) if digest in self._hashes else None

    @staticmethod
    def error(digest: str) -> MultigrainError:
        """IMAGE_HARMFUL for the image with that hash."""
        return MultigrainError(
            ErrorKind.IMAGE_HARMFUL,
            f"the image (SHA-256 {digest}) crashed the process that computed it and is "
            "quarantined: do not send it again",
        )

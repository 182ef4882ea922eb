"""What is asked of the service, and what it answers: no protobuf, no tensors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from multigrain.engine.protocol import EmbeddingOptions
from multigrain.errors import ErrorKind
from multigrain_server.models.reference import ModelVersion

_callers = itertools.count(1)


def new_caller() -> int:
    """A number that no other caller has."""
    return next(_callers)


@dataclass(frozen=True)
class ImageRequest:
    """Images of one call.

    Attributes:
        model: "name", "name@version", an alias, or "" for the default.
        images: encoded files.
        tensors: whether ``images`` are, instead, what preprocessing makes of files: each a
            little-endian float32 (3, resolution, resolution).
        resolution: side in pixels; 0 = the model's.
        vector: how embeddings are wanted; None = none.
        classes: whether the most probable classes are wanted.
        top_k: how many; 0 = 5, at most all.
        scores: whether the probabilities of all classes are wanted.
        caller: whose images these are, from ``new_caller``: engines let callers take turns, and
            a stream is one caller; 0 = a caller of its own.
        deadline_ns: on CLOCK_MONOTONIC; 0 = none.
        received_ns: when the call came in, on the same clock.
    """

    model: str
    images: Sequence[bytes]
    tensors: bool = False
    resolution: int = 0
    vector: EmbeddingOptions | None = None
    classes: bool = False
    top_k: int = 0
    scores: bool = False
    caller: int = 0
    deadline_ns: int = 0
    received_ns: int = 0


@dataclass(frozen=True)
class ItemError:
    """Why one image has no answer."""

    kind: ErrorKind
    message: str


@dataclass(frozen=True)
class ClassScore:
    class_id: int
    label: str
    probability: float


@dataclass(frozen=True)
class ItemAnswer:
    """One image's answer: an error, or what was wanted.

    ``vector`` holds little-endian numbers of the wanted dtype; ``scale`` is for int8.
    ``scores`` are little-endian float32 probabilities in the order of the classes.
    """

    error: ItemError | None = None
    vector: bytes = b""
    scale: float = 0.0
    classes: tuple[ClassScore, ...] = ()
    scores: bytes = b""


@dataclass(frozen=True)
class StageTimes:
    """Nanoseconds: the longest of a request's images in each stage."""

    decode: int = 0
    queue: int = 0
    compute: int = 0
    total: int = 0


@dataclass(frozen=True)
class Answer:
    """One item for each image, in the request's order; ``version`` is the model's."""

    version: ModelVersion
    embedding_size: int
    items: tuple[ItemAnswer, ...]
    times: StageTimes

    @property
    def model(self) -> str:
        """name@version"""
        return str(self.version)

    @property
    def model_name(self) -> str:
        """Name alone, the label of metrics."""
        return self.version.name

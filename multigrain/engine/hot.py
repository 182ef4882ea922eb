"""The two messages that every image costs, in binary: JSON would take longer than their work."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, get_args

from multigrain.errors import ErrorKind
from multigrain.spec.base import Spec

Dtype = Literal["fp32", "fp16", "int8"]
Where = Literal["", "queue", "batch"]

_DTYPES: Final[tuple[Dtype, ...]] = get_args(Dtype)
_WHERE: Final[tuple[Where, ...]] = get_args(Where)


class VectorWants(Spec):
    """How an embedding is wanted: whitened or not, then L2-normalised or not, and its dtype."""

    normalize: bool = True
    dtype: Dtype = "fp32"
    whiten: bool = False


#: Every way a vector can be wanted; place 0 is "not at all".
_WANTS: Final[tuple[VectorWants | None, ...]] = (
    None,
    *(
        VectorWants(normalize=normalize, dtype=dtype, whiten=whiten)
        for normalize in (False, True)
        for dtype in _DTYPES
        for whiten in (False, True)
    ),
)


def _place(wants: VectorWants | None) -> int:
    """In ``_WANTS``."""
    if wants is None:
        return 0
    return 1 + 6 * wants.normalize + 2 * _DTYPES.index(wants.dtype) + wants.whiten


@dataclass(slots=True)
class Submit:
    """One image; the payload is its encoded bytes. Answered by exactly one :class:`Result`.

    ``caller`` says which images are one caller's: engines are fair between callers.
    ``resolution`` 0 = the bundle's default. ``deadline_ns`` is on CLOCK_MONOTONIC, which all
    processes of a host share; 0 = none. ``top_k`` 0 = no top classes; ``scores``: the
    probabilities of all of them. With ``tensor`` the payload is what preprocessing makes of a
    file: little-endian float32 (3, resolution, resolution).
    """

    FORM: ClassVar[struct.Struct] = struct.Struct("<cqqqIIB??")
    TAG: ClassVar[bytes] = b"S"

    id: int
    caller: int = 0
    resolution: int = 0
    deadline_ns: int = 0
    vector: VectorWants | None = None
    top_k: int = 0
    scores: bool = False
    tensor: bool = False

    def pack(self) -> bytes:
        return self.FORM.pack(
            self.TAG,
            self.id,
            self.caller,
            self.deadline_ns,
            self.resolution,
            self.top_k,
            _place(self.vector),
            self.scores,
            self.tensor,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Submit:
        """Raises ValueError, IndexError or struct.error for what is no such message."""
        _, number, caller, deadline, resolution, top_k, wants, scores, tensor = cls.FORM.unpack(
            data
        )
        return cls(
            number, caller, resolution, deadline, _WANTS[wants], top_k, bool(scores), bool(tensor)
        )


@dataclass(slots=True)
class Result:
    """The answer for one image. ``kind`` 0 = OK, else an ``ErrorKind``.

    The payload is the vector (``vector_bytes``), then ``classes`` int32 class ids, then as
    many float32 probabilities, most probable first, then ``scores`` float32 probabilities in
    the order of the classes. ``leads_batch`` is set on one result of
    each batch, so that a reader can count batches. ``where`` tells how far an image came that
    was cancelled or timed out: "queue" or "batch".
    """

    FORM: ClassVar[struct.Struct] = struct.Struct("<cqIBqqqI?IdII")
    TAG: ClassVar[bytes] = b"R"

    id: int
    kind: int = 0
    message: str = ""
    where: Where = ""
    decode_ns: int = 0
    queue_ns: int = 0
    compute_ns: int = 0
    batch_items: int = 0
    leads_batch: bool = False
    vector_bytes: int = 0
    scale: float = 0.0
    classes: int = 0
    scores: int = 0

    @property
    def error_kind(self) -> ErrorKind | None:
        return ErrorKind(self.kind) if self.kind else None

    def pack(self) -> bytes:
        numbers = self.FORM.pack(
            self.TAG,
            self.id,
            self.kind,
            _WHERE.index(self.where),
            self.decode_ns,
            self.queue_ns,
            self.compute_ns,
            self.batch_items,
            self.leads_batch,
            self.vector_bytes,
            self.scale,
            self.classes,
            self.scores,
        )
        return numbers + self.message.encode() if self.message else numbers

    @classmethod
    def unpack(cls, data: bytes) -> Result:
        """Raises ValueError, IndexError or struct.error for what is no such message."""
        _, number, kind, where, *rest = cls.FORM.unpack_from(data)
        if kind:
            ErrorKind(kind)
        return cls(number, kind, data[cls.FORM.size :].decode(), _WHERE[where], *rest)

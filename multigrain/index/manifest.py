"""``index.json``: what an index is, and whose vectors it holds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.files import read_bytes
from multigrain.index.items import Field
from multigrain.index.store import IndexDamagedError
from multigrain.storage import replace_file

Engine = Literal["exact", "lancedb"]
IndexName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]

MANIFEST = "index.json"
_MAX_BYTES = 1 << 20


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What made the vectors of an index; vectors with another origin cannot be compared with them.

    Attributes:
        model: "name@version".
        bundle: SHA-256 of the model's manifest, in hex.
        resolution: in pixels.
        whiten: whether the vectors are whitened.
        precision: of the network's computation, such as "f32" or "int8".
    """

    model: str
    bundle: str
    resolution: int
    whiten: bool
    precision: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``index.json``: what an index is.

    Attributes:
        name: of the index and of its folder.
        origin: of its vectors.
        size: numbers in a vector.
        fields: attributes that its items may have.
        created: seconds since 1970.
        engine: that stores it.
        store: name of the folder of the engine.
        fixed_engine: whether the engine was chosen by the caller and stays.
    """

    name: IndexName
    origin: Origin
    size: Annotated[int, msgspec.Meta(ge=1, le=65536)]
    fields: tuple[Field, ...]
    created: float
    engine: Engine
    store: str = "store-1"
    fixed_engine: bool = False


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes ``index.json``, durably."""
    document = msgspec.json.encode(manifest)
    replace_file(folder / MANIFEST, _digest(document) + b"\n" + document)


def read_manifest(folder: Path, name: str) -> Manifest:
    """Reads ``index.json``.

    Raises:
        MultigrainError: NOT_FOUND.
        IndexDamagedError: if it is damaged.
    """
    path = folder / MANIFEST
    try:
        msgspec.convert(name, IndexName)
        data = read_bytes(path, max_bytes=_MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError, msgspec.ValidationError):
        raise unknown_index(
            name, sorted(p.parent.name for p in folder.parent.glob(f"*/{MANIFEST}"))
        ) from None
    digest, _, document = data.partition(b"\n")
    try:
        manifest = msgspec.json.decode(document, type=Manifest)
    except msgspec.MsgspecError as error:
        raise IndexDamagedError(f"{path}: {error}") from error
    if digest != _digest(document) or manifest.name != name:
        raise IndexDamagedError(f"{path} was changed")
    return manifest


def unknown_index(name: str, names: Sequence[str]) -> MultigrainError:
    """The error for a name that no index has."""
    listed = ", ".join(names[:10]) or "none"
    return MultigrainError(ErrorKind.NOT_FOUND, f"there is no index {name!r}; there are: {listed}")


def _digest(document: bytes) -> bytes:
    return hashlib.sha256(document).hexdigest().encode()

"""Reading a checkpoint, with every byte verified."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multigrain.checkpoint.manifest import CheckpointManifest
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.files import (
    MAX_DOCUMENT_BYTES,
    MAX_WEIGHTS_BYTES,
    FileTooLargeError,
    Roots,
    read_bytes,
)
from multigrain.storage import describe
from multigrain.tensors import parse_tensors

MANIFEST = "manifest.json"
MODEL = "model.safetensors"
STATE = "state.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory."""

    manifest: CheckpointManifest
    model: dict[str, NDArray[np.generic]]
    state: dict[str, NDArray[np.generic]]


def load(folder: Path) -> Checkpoint:
    """Reads a checkpoint and verifies every byte.

    Raises:
        MultigrainError: CHECKPOINT, if it is damaged or incomplete.
    """
    manifest = read_manifest(folder)
    return Checkpoint(
        manifest=manifest,
        model=_read_tensors(folder, manifest, MODEL),
        state=_read_tensors(folder, manifest, STATE),
    )


def load_model(
    folder: Path, roots: Roots = None
) -> tuple[CheckpointManifest, dict[str, NDArray[np.generic]]]:
    """Like :func:`load`, without the optimizer state.

    Args:
        folder: the checkpoint.
        roots: folders that its files must be in.
    """
    manifest = read_manifest(folder, roots)
    return manifest, _read_tensors(folder, manifest, MODEL, roots)


def read_manifest(folder: Path, roots: Roots = None) -> CheckpointManifest:
    """Reads a checkpoint's manifest; the files are not verified.

    Args:
        folder: the checkpoint.
        roots: folders that its files must be in.

    Raises:
        MultigrainError: CHECKPOINT.
    """
    try:
        text = read_bytes(folder / MANIFEST, max_bytes=MAX_DOCUMENT_BYTES, roots=roots)
        manifest = CheckpointManifest.parse(text)
    except FileNotFoundError as error:
        raise _damaged(folder, f"it has no {MANIFEST}") from error
    except OSError as error:
        raise _damaged(folder, f"its {MANIFEST} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise _damaged(folder, f"its {MANIFEST} cannot be read: {error}") from error
    if manifest.format_version != 1:
        raise _damaged(
            folder, f"its format has version {manifest.format_version}, this program supports 1"
        )
    return manifest


def verify(folder: Path) -> CheckpointManifest:
    """Verifies sizes and hashes of all files.

    Raises:
        MultigrainError: CHECKPOINT.
    """
    manifest = read_manifest(folder)
    for name in (MODEL, STATE):
        if name not in manifest.files:
            raise _damaged(folder, f"{name} is not in its {MANIFEST}")
    for name, entry in manifest.files.items():
        path = folder / Path(name).name
        try:
            same = path.stat().st_size == entry.bytes and describe(path) == entry
        except FileNotFoundError as error:
            raise _damaged(folder, f"{name} is missing") from error
        except OSError as error:
            raise _damaged(folder, f"{name} cannot be read: {error.strerror}") from error
        if not same:
            raise _damaged(folder, f"{name} is not what was written")
    return manifest


def _read_tensors(
    folder: Path, manifest: CheckpointManifest, name: str, roots: Roots = None
) -> dict[str, NDArray[np.generic]]:
    entry = manifest.files.get(name)
    if entry is None:
        raise _damaged(folder, f"{name} is not in its {MANIFEST}")
    try:
        data = read_bytes(folder / name, max_bytes=min(entry.bytes, MAX_WEIGHTS_BYTES), roots=roots)
        if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise _damaged(folder, f"{name} is not what was written")
        return parse_tensors(data)
    except FileNotFoundError as error:
        raise _damaged(folder, f"{name} is missing") from error
    except FileTooLargeError as error:
        raise _damaged(folder, f"{name} is not what was written") from error
    except OSError as error:
        raise _damaged(folder, f"{name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise _damaged(folder, f"{name} cannot be read: {error}") from error


def _damaged(folder: Path, what: str) -> MultigrainError:
    return MultigrainError(
        ErrorKind.CHECKPOINT,
        f"checkpoint {folder.name} cannot be used: {what}. Use another checkpoint",
    )

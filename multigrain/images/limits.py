"""The limits of one image file: the same for training, evaluation, export and serving."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.files import read_json
from multigrain.storage import replace_file


@dataclass(frozen=True)
class ImageLimits:
    """Limits of an encoded image.

    The daemon sets them for its engines and its jobs (``serving.max_image_bytes``,
    ``serving.max_image_pixels``, ``serving.max_decode_bytes`` and ``serving.max_decode_seconds``).

    Args:
        max_bytes: largest encoded size in bytes.
        max_pixels: largest width x height, checked in the header before decoding.
        roots: folders that the files of a dataset must be in, wherever links lead; None = no
            restriction, as without a daemon.
        max_decode_bytes: most memory that decoding may take, as estimated before it.
        max_decode_seconds: most processor time that decoding may take, as estimated before it.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000
    roots: tuple[Path, ...] | None = None
    max_decode_bytes: int = 320 * 2**20
    max_decode_seconds: float = 5.0


DEFAULT_LIMITS: Final = ImageLimits()


def write_limits(path: Path, limits: ImageLimits) -> None:
    """Writes limits for :func:`read_limits`.

    Raises:
        OSError: if the file cannot be written.
    """
    body = {
        "max_bytes": limits.max_bytes,
        "max_pixels": limits.max_pixels,
        "max_decode_bytes": limits.max_decode_bytes,
        "max_decode_seconds": limits.max_decode_seconds,
        "roots": None if limits.roots is None else [str(root) for root in limits.roots],
    }
    replace_file(path, f"{json.dumps(body)}\n".encode())


def read_limits(path: Path) -> ImageLimits:
    """Reads limits; the defaults if there is no file.

    Raises:
        MultigrainError: STORAGE, if the file cannot be read or is damaged.
    """
    try:
        body = read_json(path)
        roots = body["roots"]
        limits = ImageLimits(
            int(body["max_bytes"]),
            int(body["max_pixels"]),
            None if roots is None else tuple(Path(root) for root in roots),
            int(body["max_decode_bytes"]),
            float(body["max_decode_seconds"]),
        )
    except FileNotFoundError:
        return DEFAULT_LIMITS
    except (OSError, ValueError, OverflowError, KeyError, TypeError) as error:
        raise MultigrainError(
            ErrorKind.STORAGE,
            f"{path.name} in the job's folder cannot be read ({error}): resume the job, which "
            "writes it again",
        ) from error
    return limits

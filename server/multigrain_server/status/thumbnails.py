"""Small pictures of a dataset's images, made by a process of its own.

Datasets may hold anything. The process opens files below one folder only, and then decodes them
with no access to files and no network, as an engine's decoder processes do.

``python -m multigrain_server.status.thumbnails`` reads ``{"root": ..., "paths": [...]}`` and writes
a list with a data URI for each path, "" for one that cannot be shown.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import structlog

from multigrain.errors import MultigrainError
from multigrain.files import parse_json, read_bytes
from multigrain.processes import child_environment, python_command

_log = structlog.get_logger(__name__)

SIDE = 112
"""Pixels of the longer side."""

_SECONDS = 20.0
_MAX_BYTES = 32 << 20
_QUALITY = 72


def thumbnails(root: Path, paths: Sequence[str]) -> list[str]:
    """JPEGs as data URIs, one for each path; "" where there is none. Takes about half a second.

    Args:
        root: the dataset's folder. Nothing outside of it is opened.
        paths: of images below it.
    """
    nothing = [""] * len(paths)
    if not paths:
        return nothing
    request = json.dumps({"root": os.fsencode(root).hex(), "paths": [_hex(p) for p in paths]})
    try:
        done = subprocess.run(
            python_command(__name__),
            input=request.encode(),
            capture_output=True,
            timeout=_SECONDS,
            env=child_environment(os.environ),
            cwd="/",
            check=True,
        )
        found = parse_json(done.stdout)
        return [str(found[n]) for n in range(len(paths))]
    except (OSError, subprocess.SubprocessError, ValueError, LookupError) as error:
        _log.warning("thumbnails not made", reason=repr(error)[:500])
        return nothing


def _hex(path: str) -> str:
    return os.fsencode(path).hex()


def _path(text: str) -> str:
    return os.fsdecode(bytes.fromhex(text))


def _main() -> None:
    from PIL import Image

    from multigrain.images.decode import decode_image
    from multigrain.sandbox.apply import apply
    from multigrain.sandbox.policies import decoder_sandbox

    request = parse_json(sys.stdin.read())
    root = Path(os.path.realpath(_path(request["root"])))
    files: list[bytes] = []
    for path in map(_path, request["paths"]):
        try:
            files.append(read_bytes(root / path, max_bytes=_MAX_BYTES, roots=[root]))
        except OSError:
            files.append(b"")
    Image.init()  # loads Pillow's plugins while files can be read
    apply(decoder_sandbox())
    found = []
    for data in files:
        try:
            image = decode_image(data, shortest=SIDE)
        except MultigrainError:
            found.append("")
            continue
        image.thumbnail((SIDE, SIDE))
        out = BytesIO()
        image.save(out, "JPEG", quality=_QUALITY)
        found.append(f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}")
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    _main()

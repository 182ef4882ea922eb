"""``python -m multigrain.engine``: started by the daemon, one for each loaded model."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
import time

from multigrain import memory
from multigrain.bundle.manifest import MANIFEST_NAME, BundleManifest
from multigrain.engine.inflight import InHand
from multigrain.engine.protocol import (
    Cancel,
    Connection,
    Hold,
    LoadFailed,
    Ready,
    Submit,
    WireError,
)
from multigrain.engine.runtimes.base import Bundle, Compute, Pixels
from multigrain.engine.runtimes.choice import load
from multigrain.engine.scheduling import measure
from multigrain.engine.settings import EngineSettings
from multigrain.engine.worker import Decode, Worker
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.decode import ImageLimits
from multigrain.images.preprocess import crop
from multigrain.memory import exit_if_out_of_memory
from multigrain.processes import background
from multigrain.processes import die_with_parent_code as die_with_parent
from multigrain.whitening import StoredWhitening, read_whitening

_LOG = logging.getLogger("multigrain.engine")
# float32 (3, 4096, 4096): no bundle serves a larger resolution.
_MAX_TENSOR_BYTES = 4 * 3 * 4096 * 4096


def main() -> int:
    settings = EngineSettings.parse()
    if settings.parent_pid:
        die_with_parent(settings.parent_pid)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    started = time.monotonic()
    sock = socket.socket(fileno=settings.socket_fd)
    # A prepared image may be larger than the file that the limit is for.
    connection = Connection(sock, max(settings.max_image_bytes, _MAX_TENSOR_BYTES))
    try:
        with background() if settings.background else contextlib.nullcontext():
            bundle = read_bundle(settings)
            compute = Compute(settings.device, settings.threads, settings.max_batch)
            loaded = load(settings.runtime, bundle, compute)
            runtimes, manifest = loaded.runtimes, bundle.manifest
            whitenings = read_whitenings(bundle)
    except MultigrainError as error:
        connection.send(LoadFailed(kind=error.kind.value, message=error.message[:4000]))
        return 1
    paces = {side: measure(runtime, side) for side, runtime in runtimes.items()}
    memory.release_freed_memory()
    worker = Worker(
        runtimes,
        manifest.heads[0].resolution,
        decoder(bundle, settings),
        connection.send_all,
        max_batch=settings.max_batch,
        decode_threads=settings.decode_threads,
        paces=paces,
        whitenings=whitenings,
        in_hand=InHand(settings.in_hand_fd, settings.slots) if settings.in_hand_fd >= 0 else None,
    )
    worker.start()
    # The network computes in the main thread: MindSpore keeps state by thread.
    threading.Thread(target=read_requests, args=(connection, worker), daemon=True).start()
    first = next(iter(runtimes.values()))
    connection.send(
        Ready(
            runtime=first.name,
            reason=loaded.reason,
            precision=first.precision,
            resolutions=tuple(runtimes),
            embedding_size=manifest.embedding_size,
            classes=manifest.model.classes or len(manifest.labels),
            max_batch=settings.max_batch,
            load_seconds=time.monotonic() - started,
            images_per_second=worker.images_per_second,
            busy_items=worker.busy_items,
        )
    )
    worker.compute_loop()
    return 0


def read_bundle(settings: EngineSettings) -> Bundle:
    """The manifest; its files were checked by the daemon. Raises MultigrainError."""
    try:
        text = (settings.bundle / MANIFEST_NAME).read_text()
        return Bundle(settings.bundle, BundleManifest.model_validate_json(text))
    except (OSError, ValueError) as error:
        raise MultigrainError(
            ErrorKind.CHECKPOINT, f"the bundle's {MANIFEST_NAME} cannot be read: {error}"
        ) from error


def read_whitenings(bundle: Bundle) -> dict[int, StoredWhitening]:
    """By resolution, of the heads that have one. Raises MultigrainError CHECKPOINT."""
    return {
        head.resolution: read_whitening(
            bundle.path / head.whitening.file, bundle.manifest.embedding_size
        )
        for head in bundle.manifest.heads
        if head.whitening is not None
    }


def decoder(bundle: Bundle, settings: EngineSettings) -> Decode:
    """The evaluation's own preprocessing, with the bundle's parameters and our limits."""
    limits = ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
    parameters = {head.resolution: head.preprocessing for head in bundle.manifest.heads}

    def decode(data: bytes, resolution: int) -> Pixels:
        return crop(data, parameters[resolution], limits)

    return decode


def read_requests(connection: Connection, worker: Worker) -> None:
    """Feeds the worker until the daemon closes the socket, then ends the process."""
    try:
        for frame in connection.frames():
            match frame.message:
                case Submit() as request:
                    worker.submit(request, frame.payload)
                case Cancel(id=item_id):
                    worker.cancel(item_id)
                case Hold(items=items):
                    worker.hold(items)
                case _:
                    raise WireError(f"an engine takes no {type(frame.message).__name__}")
    except WireError as error:
        _LOG.error("the daemon sent what an engine does not understand: %s", error)
    except Exception as error:  # an engine that hears nothing any more must not look alive
        exit_if_out_of_memory(error)
        _LOG.exception("requests cannot be read")
    # There is nothing to save, and a thread inside a native library must not delay the end.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())

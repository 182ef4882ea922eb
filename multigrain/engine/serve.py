"""Serving one model: loads it, then decodes, batches and computes images."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence

from multigrain.bundle.folder import check_files, read
from multigrain.bundle.manifest import BundleManifest
from multigrain.engine.batching import BatchLatencyEstimator
from multigrain.engine.decoder_process import Parameters
from multigrain.engine.decoders import DecoderProcess, Template
from multigrain.engine.lanes import Lane
from multigrain.engine.protocol import (
    Cancel,
    Connection,
    InFlightSlots,
    LoadFailed,
    Ready,
    Submit,
    WireError,
)
from multigrain.engine.runtimes.base import Bundle, Compute
from multigrain.engine.runtimes.choice import load
from multigrain.engine.settings import EngineSettings
from multigrain.engine.shared_images import LargeImage, StoredImage
from multigrain.engine.worker import Worker
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.memory import exit_if_out_of_memory, release_freed_memory
from multigrain.processes import low_priority
from multigrain.sandbox.apply import SandboxReport, forbid_new_memory_files
from multigrain.text import printable
from multigrain.whitening import StoredWhitening, read_whitening

_LOG = logging.getLogger("multigrain.engine")
# A preprocessed image of 4096 x 4096, float32: no bundle serves a larger resolution.
_MAX_TENSOR_BYTES = 4 * 3 * 4096 * 4096
# Memory of one image in a decoder process. An estimate may be wrong: an ordinary decoder process
# may use several times what ordinary images are estimated to take. In the other lanes, what the
# limits allow must fit, and what an estimate may be too low by.
_ORDINARY_BYTES = 256 << 20
_OTHER_BYTES = 128 << 20


def serve(settings: EngineSettings, template: socket.socket, sandbox: SandboxReport) -> int:
    """Serves until the daemon closes the socket; returns 1 if the bundle cannot be loaded.

    Args:
        settings: of the engine.
        template: the socket to the template of decoder processes.
        sandbox: how this process is restricted, for the daemon.
    """
    started = time.monotonic()
    sock = socket.socket(fileno=settings.socket_fd)
    connection = Connection(sock, max_payload(settings))
    try:
        check_sandbox(settings, sandbox)
        with low_priority() if settings.low_priority else contextlib.nullcontext():
            bundle = read_bundle(settings)
            by_lane = decoders(settings, bundle.manifest, template)
            inflight_fd = settings.inflight_fd
            if inflight_fd < 0:
                inflight_fd = InFlightSlots.allocate(settings.max_batch)
            if sandbox.active("system_calls"):
                forbid_new_memory_files()
            compute = Compute(settings.device, settings.threads, settings.max_batch)
            loaded = load(settings.runtime, bundle, compute)
            runtimes, manifest = loaded.runtimes, bundle.manifest
            whitenings = read_whitenings(bundle)
    except MultigrainError as error:
        connection.send(LoadFailed(error=error.kind, message=error.message[:4000]))
        return 1
    except Exception as error:
        exit_if_out_of_memory(error)  # the daemon reports the exit code as the reason
        connection.send(LoadFailed(error=ErrorKind.CHECKPOINT, message=unexpected(error)))
        return 1
    starting = threading.Thread(target=start_all, args=(by_lane[Lane.ORDINARY],), daemon=True)
    starting.start()
    latencies = {
        resolution: BatchLatencyEstimator.measure(runtime, resolution)
        for resolution, runtime in runtimes.items()
    }
    release_freed_memory()
    worker = Worker(
        runtimes,
        manifest.heads[0].resolution,
        by_lane,
        connection.send_all,
        max_batch=settings.max_batch,
        decode_wall_seconds=settings.decode_wall_seconds,
        latencies=latencies,
        whitenings=whitenings,
        inflight=InFlightSlots(inflight_fd, settings.max_batch),
    )
    starting.join()  # the first image should not wait for it
    worker.start()
    # The network runs in the main thread: MindSpore has thread-local state.
    reader = threading.Thread(
        target=read_requests, args=(connection, worker, settings), daemon=True
    )
    reader.start()
    first = next(iter(runtimes.values()))
    connection.send(
        Ready(
            runtime=first.name,
            reason=loaded.reason,
            precision=first.precision,
            resolutions=tuple(runtimes),
            embedding_size=manifest.embedding_size,
            classes=manifest.classes,
            max_batch=settings.max_batch,
            load_seconds=time.monotonic() - started,
            images_per_second=worker.images_per_second,
            busy_items=worker.busy_items,
            sandbox=sandbox.measures,
            runtime_name=loaded.name,
            speeds=loaded.speeds,
        )
    )
    worker.compute_loop()
    return 0


def max_payload(settings: EngineSettings) -> int:
    """Bytes of an image at most; a preprocessed one may be larger than an encoded one."""
    return max(settings.max_image_bytes, _MAX_TENSOR_BYTES)


def decoders(
    settings: EngineSettings, manifest: BundleManifest, template: socket.socket
) -> dict[Lane, list[DecoderProcess]]:
    """The decoder processes of each lane; they are started when they are needed."""
    parameters = Parameters(
        input_bytes=max_payload(settings),
        max_bytes=settings.max_image_bytes,
        max_pixels=settings.max_image_pixels,
        max_decode_bytes=settings.max_decode_bytes,
        max_decode_seconds=settings.max_decode_seconds,
        preprocessing={
            head.resolution: head.preprocessing.model_dump_json() for head in manifest.heads
        },
    )
    source = Template(template, parameters)
    most = _OTHER_BYTES + 2 * settings.max_image_bytes + settings.max_decode_bytes
    count = range(settings.decode_threads)
    return {
        Lane.ORDINARY: [DecoderProcess(source, _ORDINARY_BYTES) for _ in count],
        Lane.LARGE: [DecoderProcess(source, most, "low") for _ in count],
        Lane.SLOW: [DecoderProcess(source, most, "idle")],
    }


def start_all(decoders: Sequence[DecoderProcess]) -> None:
    """Starts decoder processes."""
    for decoder in decoders:
        decoder.start()


def check_sandbox(settings: EngineSettings, sandbox: SandboxReport) -> None:
    """Raises MultigrainError UNSUPPORTED if a measure is missing and the settings require all."""
    if settings.sandbox == "required" and sandbox.missing:
        missing = "; ".join(map(str, sandbox.missing))
        raise MultigrainError(
            ErrorKind.UNSUPPORTED,
            f"serving.sandbox is required, but this machine cannot restrict engines by {missing}. "
            "multigrain-server doctor says how to fix it; with serving.sandbox=auto, engines run "
            "without these measures",
        )


def unexpected(error: Exception) -> str:
    """The message of an error of a library while it loads a bundle: a damaged file, most likely."""
    text = printable(f"{type(error).__name__}: {error}"[:1000])
    _LOG.error("cannot load the bundle: %s", text)
    return f"the bundle cannot be loaded ({text}): export or import it again"


def read_bundle(settings: EngineSettings) -> Bundle:
    """Reads the manifest and checks the files, whose checksums the daemon has verified.

    Raises:
        MultigrainError: CHECKPOINT.
    """
    manifest = read(settings.bundle)
    check_files(settings.bundle, manifest)
    return Bundle(settings.bundle, manifest)


def read_whitenings(bundle: Bundle) -> dict[int, StoredWhitening]:
    """Whitenings by resolution, of the heads that have one. Raises MultigrainError CHECKPOINT."""
    return {
        head.resolution: read_whitening(
            bundle.path / head.whitening.file, bundle.manifest.embedding_size
        )
        for head in bundle.manifest.heads
        if head.whitening is not None
    }


def read_requests(connection: Connection, worker: Worker, settings: EngineSettings) -> None:
    """Passes requests to the worker until the daemon closes the socket, then ends the process."""
    try:
        for frame in connection.frames():
            match frame.message:
                case Submit(stored=None) as request:
                    worker.submit(request, frame.payload)
                case Submit(stored=StoredImage() as stored) as request:
                    if settings.images_fd < 0 or stored.size > max_payload(settings):
                        raise WireError(f"an image of {stored.size} bytes refused")
                    worker.submit(request, LargeImage(settings.images_fd, stored))
                case Cancel(id=item_id):
                    worker.cancel(item_id)
                case _:
                    raise WireError(f"unexpected {type(frame.message).__name__}")
    except WireError as error:
        _LOG.error("protocol error: %s", error)
    except Exception as error:  # an engine that reads no requests must not look alive
        exit_if_out_of_memory(error)
        _LOG.exception("cannot read requests")
    # Nothing to save, and a thread inside a native library must not delay the exit.
    sys.stderr.flush()
    os._exit(0)

"""The daemon's ``serving`` section: every limit of serving, with its unit and default."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from multigrain.engine.settings import RuntimeName
from multigrain.images.limits import ImageLimits
from multigrain.machine import available_cpus
from multigrain.sandbox.apply import SandboxMode
from multigrain.specs.base import Spec

_MIB = 1024 * 1024
_MAX_BYTES = 2**50
_DECODE_SECONDS_PER_CPU = 60.0

#: Names of environment variables; a last ``*`` stands for all names that begin so.
EnvironmentNames = tuple[
    Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\*?$")], ...
]


class ServingConfig(Spec):
    """The daemon's ``serving`` section."""

    models: tuple[Annotated[str, StringConstraints(min_length=1)], ...] = Field(
        (),
        description="Models that the daemon loads when it starts: names, name@version, or aliases. "
        "The first becomes the default model. It is ready (/readyz, gRPC health) once each has "
        "been tried: one that cannot be loaded is logged and does not stop the others. Default "
        "none.",
    )
    max_images_per_request: int = Field(
        64, ge=1, le=10_000, description="Images in one request at most. Default 64."
    )
    max_image_bytes: int = Field(
        32 * _MIB,
        ge=1024,
        le=1024 * _MIB,
        description="Bytes of one encoded image at most, also of the images of a dataset. "
        "Default 32 MiB.",
    )
    max_image_pixels: int = Field(
        50_000_000,
        ge=1,
        le=1_000_000_000,
        description="Width x height of one image at most, read from its header, also of the "
        "images of a dataset. Default 50,000,000 pixels.",
    )
    max_decode_bytes: int = Field(
        320 * _MIB,
        ge=16 * _MIB,
        le=_MAX_BYTES,
        description="Bytes of memory that decoding one image may take, as estimated from its "
        "header, also of the images of a dataset. Default 320 MiB.",
    )
    max_decode_seconds: float = Field(
        5.0,
        gt=0,
        le=3600,
        description="Seconds of processor time that decoding one image may take, as estimated from "
        "its header, also of the images of a dataset. Default 5.",
    )
    queue_items: int = Field(
        # A client that is alone may use 13/16 of it, or more: four streams with full windows.
        640,
        ge=1,
        le=1_000_000,
        description="Images in flight over all requests; more are refused "
        "with RESOURCE_EXHAUSTED. Default 640.",
    )
    queue_bytes: int = Field(
        256 * _MIB,
        ge=1024,
        le=_MAX_BYTES,
        description="Encoded bytes of those images. Default 256 MiB.",
    )
    queue_decode_seconds: float = Field(
        0.0,
        ge=0,
        le=1_000_000_000,
        description="Estimated CPU seconds to decode those images; 0 = 60 for each CPU that the "
        "daemon may use. Default 0.",
    )
    queue_decode_bytes: int = Field(
        32768 * _MIB,
        ge=1024,
        le=_MAX_BYTES,
        description="Estimated bytes of memory to decode those images if all were decoded at "
        "once; few are. Default 32 GiB.",
    )
    cache_bytes: int = Field(
        0,
        ge=0,
        le=_MAX_BYTES,
        description="Bytes of the response cache: results of images that are sent again, with the "
        "same options, to the same loaded model. 0 = no cache. Default 0.",
    )
    stream_window: int = Field(
        128,
        ge=1,
        le=1_000_000,
        description="Images of one EmbedStream that are in flight at a time; the server reads "
        "no further request until there is room. Default 128.",
    )
    max_batch: int = Field(
        32, ge=1, le=4096, description="Images in one forward pass at most. Default 32."
    )
    decode_threads: int = Field(
        0,
        ge=0,
        le=256,
        description="Processes of an engine that decode ordinary images at the same time. As many "
        "more, at a low priority, decode large ones, and one the most expensive ones. 0 = one per "
        "CPU that the daemon may use. Default 0.",
    )
    engine_threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="Compute threads of an engine; 0 = all CPUs that the daemon may use. "
        "Default 0.",
    )
    device: Literal["cpu", "gpu", "ascend"] = Field(
        "cpu", description="Where engines compute. Default cpu."
    )
    runtime: RuntimeName = Field(
        "auto",
        description="Runtime of a LoadModel that names none: auto, openvino, openvino-int8, "
        "openvino-bf16, openvino-f32, onnxruntime or mindspore. Default auto.",
    )
    load_timeout_seconds: float = Field(
        300.0, gt=0, description="Seconds an engine has to load and warm up. Default 300."
    )
    engine_stall_seconds: float = Field(
        60.0,
        gt=0,
        description="Seconds that an engine with images in flight may answer none, or that it may "
        "compute one of them; then it is killed and replaced. Decoding an image may take half of "
        "that on a busy machine. Default 60.",
    )
    drain_seconds: float = Field(
        30.0,
        ge=0,
        description="Seconds that requests in flight have to finish when a model is unloaded "
        "or replaced. Default 30.",
    )
    restart_backoff_seconds: float = Field(
        0.1,
        gt=0,
        description="Delay before an engine that crashed again is restarted (there is none after "
        "the first crash); doubles each time, up to restart_backoff_max_seconds. Default 0.1.",
    )
    restart_backoff_max_seconds: float = Field(
        30.0, gt=0, description="Longest such delay. Default 30."
    )
    keep_replaced_versions: bool = Field(
        False,
        description="Keep older versions loaded when a newer one of the same model is loaded. "
        "By default they are drained and unloaded, unless an alias or the default model "
        "points at them.",
    )
    memory_budget_mib: int = Field(
        0,
        ge=0,
        le=_MAX_BYTES // _MIB,
        description="MiB of resident memory that all engines together may hold; beyond it the "
        "least recently used model that no alias and no default points at is unloaded, and a "
        "load that cannot fit is refused. 0 = no limit. Default 0.",
    )
    sandbox: SandboxMode = Field(
        "auto",
        description="Whether engines restrict themselves to what they need: the files of their "
        "bundle, no network, no other programs, and at most four times memory_budget_mib of "
        "memory, or that of the machine or container. auto = by what the machine offers (see "
        "multigrain-server doctor), off = not at all, required = refuse to load a model where a "
        "measure is missing. Default auto.",
    )
    engine_environment: EnvironmentNames = Field(
        (),
        description="Names of further environment variables of the daemon that engines get; NAME* "
        "stands for all that begin with NAME. By default they get search paths, language, time "
        "zone, and the variables of Python, drivers and numerical libraries. Default none.",
    )
    max_bundle_bytes: int = Field(
        4096 * _MIB,
        ge=1024,
        le=_MAX_BYTES,
        description="Bytes of an imported bundle at most. Default 4 GiB.",
    )
    max_transfers_per_client: int = Field(
        4,
        ge=1,
        le=1000,
        description="Imports and downloads of models, and downloads of jobs' files, that one "
        "client (a token, or a host without tokens) may have open.",
    )
    max_transfers: int = Field(
        16,
        ge=1,
        le=1000,
        description="Imports and downloads of models, and downloads of jobs' files, that may be "
        "open in all. Each download of a model holds a file descriptor for each file of the "
        "bundle.",
    )
    transfer_timeout_seconds: float = Field(
        60.0,
        gt=0,
        le=86_400,
        description="An import or download whose client neither sends nor takes data for this "
        "long is ended.",
    )

    @property
    def decoders(self) -> int:
        """Images that an engine decodes at a time."""
        return self.decode_threads or available_cpus()

    @property
    def queue_limits(self) -> tuple[int, int, float, int]:
        """Images in flight, their bytes, and CPU seconds and bytes of memory to decode them."""
        seconds = self.queue_decode_seconds or _DECODE_SECONDS_PER_CPU * available_cpus()
        return self.queue_items, self.queue_bytes, seconds, self.queue_decode_bytes

    @property
    def image_limits(self) -> ImageLimits:
        """The limits of one image, also of the images of a dataset."""
        return ImageLimits(
            self.max_image_bytes,
            self.max_image_pixels,
            max_decode_bytes=self.max_decode_bytes,
            max_decode_seconds=self.max_decode_seconds,
        )

    @model_validator(mode="after")
    def _requests_fit_the_queue(self) -> Self:
        if self.queue_items < self.max_images_per_request:
            raise ValueError(
                f"queue_items ({self.queue_items}) must be at least max_images_per_request "
                f"({self.max_images_per_request}): the largest request could never be admitted"
            )
        if self.queue_bytes < self.max_image_bytes:
            raise ValueError(
                f"queue_bytes ({self.queue_bytes}) must be at least max_image_bytes "
                f"({self.max_image_bytes}): the largest image could never be admitted"
            )
        return self

"""Settings of an engine process. The daemon imports this module: nothing heavy here."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final, Literal, get_args

from pydantic import Field

from multigrain.sandbox.apply import SandboxMode
from multigrain.specs.base import Spec

RuntimeName = Literal[
    "auto",
    "openvino",
    "openvino-int8",
    "openvino-bf16",
    "openvino-f32",
    "onnxruntime",
    "mindspore",
]
RUNTIMES: Final[tuple[str, ...]] = get_args(RuntimeName)
"""Names that a request or the configuration may use."""


class EngineSettings(Spec):
    """How to serve one bundle; passed as JSON on the command line of ``multigrain.engine``.

    Attributes:
        bundle: the bundle's folder.
        socket_fd: inherited end of a Unix stream socket pair, whose other end the daemon has. A
            pair needs no path: nothing to clean up, no length limit, nobody else can connect.
        runtime: one of ``RUNTIMES``.
        device: computes the network.
        threads: of the network; 0 = all cores.
        decode_threads: decoder processes for ordinary images; one more decodes the others.
        decode_wall_seconds: that decoding an image may take on a busy machine.
        max_batch: images in a batch at most.
        max_image_bytes: size of an encoded image.
        max_image_pixels: width x height of an image.
        max_decode_bytes: memory that decoding an image takes, as estimated.
        max_decode_seconds: processor time that decoding an image takes, as estimated.
        low_priority: load at a low priority, because other engines serve meanwhile.
        inflight_fd: inherited shared memory of ``multigrain.engine.protocol``; -1 = none.
        images_fd: inherited memory of ``multigrain.engine.shared_images``; -1 = none.
        sandbox: whether the engine restricts itself: see ``multigrain.sandbox.apply``.
        memory_bytes: that it may allocate then; 0 = all of the machine or its container.
        parent_pid: the engine exits when this process is no longer its parent; 0 = never.
    """

    bundle: Path
    socket_fd: int
    runtime: str = "auto"
    device: Literal["cpu", "gpu", "ascend"] = "cpu"
    threads: int = Field(0, ge=0)
    decode_threads: int = Field(2, ge=1)
    decode_wall_seconds: float = Field(30.0, gt=0)
    max_batch: int = Field(32, ge=1)
    max_image_bytes: int = Field(32 * 1024 * 1024, ge=1)
    max_image_pixels: int = Field(50_000_000, ge=1)
    max_decode_bytes: int = Field(320 * 1024 * 1024, ge=1)
    max_decode_seconds: float = Field(5.0, gt=0)
    low_priority: bool = False
    inflight_fd: int = -1
    images_fd: int = -1
    sandbox: SandboxMode = "auto"
    memory_bytes: int = Field(0, ge=0)
    parent_pid: int = 0

    def arguments(self) -> list[str]:
        """The command line that :meth:`parse` reads."""
        return ["--settings", self.model_dump_json()]

    @classmethod
    def parse(cls, arguments: list[str] | None = None) -> EngineSettings:
        """Reads the command line, by default the process's own."""
        parser = argparse.ArgumentParser(
            prog="python -m multigrain.engine",
            description="Serves one model over a socket; started by the daemon.",
        )
        parser.add_argument("--settings", required=True, metavar="JSON", help="EngineSettings")
        return cls.model_validate_json(parser.parse_args(arguments).settings)

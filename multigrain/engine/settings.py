"""The names under which a runtime can be asked for. The daemon reads them: nothing heavy here."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

#: What a request or the configuration may say.
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


# MERGED: The command line of an engine.


@dataclass(frozen=True)
class EngineSettings:
    """How to serve one bundle.

    Attributes:
        socket_fd: inherited end of a Unix stream socket; the other end is the daemon's. A
            pair needs no path: nothing to clean up, no length limit, nobody else can connect.
        runtime: one of ``multigrain.engine.settings.RUNTIMES``.
        threads: of the network; 0 = all cores.
        decode_threads: at least 1.
        max_batch: images.
        max_image_bytes: of an encoded image.
        max_image_pixels: width x height of an image.
        background: 1 = load at a low priority, because others are served meanwhile.
        in_hand_fd: inherited shared memory of ``multigrain.engine.inflight``; -1 = none.
        parent_pid: the engine ends when this process is not its parent any more; 0 = never.
    """

    bundle: Path
    socket_fd: int
    runtime: str = "auto"
    device: str = "cpu"
    threads: int = 0
    decode_threads: int = 2
    max_batch: int = 32
    max_image_bytes: int = 32 * 1024 * 1024
    max_image_pixels: int = 50_000_000
    background: int = 0
    in_hand_fd: int = -1
    parent_pid: int = 0

    @property
    def slots(self) -> int:
        """Images that can be in the engine's hands at a time."""
        return self.max_batch + self.decode_threads

    def arguments(self) -> list[str]:
        """The command line that :meth:`parse` reads."""
        return [
            *("--bundle", str(self.bundle)),
            *("--socket-fd", str(self.socket_fd)),
            *("--runtime", self.runtime),
            *("--device", self.device),
            *("--threads", str(self.threads)),
            *("--decode-threads", str(self.decode_threads)),
            *("--max-batch", str(self.max_batch)),
            *("--max-image-bytes", str(self.max_image_bytes)),
            *("--max-image-pixels", str(self.max_image_pixels)),
            *("--background", str(self.background)),
            *("--in-hand-fd", str(self.in_hand_fd)),
            *("--parent-pid", str(self.parent_pid)),
        ]

    @classmethod
    def parse(cls, arguments: list[str] | None = None) -> EngineSettings:
        parser = argparse.ArgumentParser(
            prog="python -m multigrain.engine",
            description="Holds one model and answers images over a socket; started by the daemon.",
        )
        parser.add_argument("--bundle", type=Path, required=True)
        parser.add_argument("--socket-fd", type=int, required=True)
        parser.add_argument("--runtime", default=cls.runtime)
        parser.add_argument("--device", default=cls.device, choices=("cpu", "gpu", "ascend"))
        for name in (
            "threads",
            "decode_threads",
            "max_batch",
            "max_image_bytes",
            "max_image_pixels",
            "background",
            "in_hand_fd",
            "parent_pid",
        ):
            parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(cls, name))
        return cls(**vars(parser.parse_args(arguments)))

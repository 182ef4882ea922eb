"""Every way by which bytes from elsewhere are read, with examples of what is right.

A target takes bytes and raises nothing: what its reader is documented to raise is its answer.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save as save_tensors

from multigrain.bundle.folder import read, unpack_tar, write_tar
from multigrain.bundle.manifest import MANIFEST_NAME
from multigrain.bundle.reference import read_reference
from multigrain.checkpoint import store
from multigrain.checkpoint.manifest import CheckpointManifest
from multigrain.engine.protocol import (
    EmbeddingOptions,
    FrameParser,
    Ready,
    Result,
    Submit,
    WireError,
    encode,
)
from multigrain.errors import MultigrainError
from multigrain.events.log import EventWriter, read_events
from multigrain.events.records import JobState, StateRecord
from multigrain.images.decode import decode, image_size
from multigrain.images.limits import ImageLimits
from multigrain.specs.resolve import resolve_evaluation, resolve_export, resolve_training
from multigrain.specs.training import ModelSpec
from multigrain.strict_yaml import YamlError, load_yaml_file
from multigrain.weights.load import load_weights
from multigrain.whitening import read_whitening
from multigrain_server.access.tokens import NewToken, TokenFileError, read_tokens
from multigrain_server.settings_sources import ConfigError, parse
from tests.engine.bundles import EMBEDDING, write_bundle
from tests.engine.pictures import invalid_images, picture, unusual_images

_LIMITS = ImageLimits(max_bytes=1 << 20, max_pixels=2_000_000)
_PRESETS = Path(store.__file__).parents[1] / "specs" / "presets"


@dataclass(frozen=True)
class Target:
    """A reader, what it may raise, and bytes that it takes."""

    read: Callable[[bytes], object]
    corpus: Sequence[bytes]
    refusals: tuple[type[Exception], ...] = (MultigrainError,)

    def __call__(self, data: bytes) -> None:
        with contextlib.suppress(*self.refusals):
            self.read(data)


def targets(folder: Path) -> dict[str, Target]:
    """All of them by name; they write below ``folder``."""
    bundle = write_bundle(folder / "models", whitened=True, referenced=True)
    checkpoint = _checkpoint(folder)
    weights = save_tensors({"trunk.conv1.weight": np.zeros((2, 3, 3, 3), np.float32)})
    specs = [path.read_bytes() for path in sorted(_PRESETS.glob("*.yaml"))]
    return {
        "image": Target(
            _image, [picture(1), *unusual_images().values(), *invalid_images().values()]
        ),
        "bundle manifest": Target(
            _in(bundle, MANIFEST_NAME, lambda path: read(path.parent)),
            [(bundle / MANIFEST_NAME).read_bytes()],
        ),
        "bundle archive": Target(_archive, [_tar(bundle)]),
        "whitening": Target(
            _in(folder, "w.safetensors", lambda path: read_whitening(path, EMBEDDING)),
            [(bundle / "whitening.safetensors").read_bytes()],
        ),
        "reference": Target(
            _in(folder, "r.safetensors", read_reference),
            [(bundle / "reference.safetensors").read_bytes()],
        ),
        "checkpoint manifest": Target(
            _in(checkpoint, store.MANIFEST, lambda path: store.load(path.parent)),
            [(checkpoint / store.MANIFEST).read_bytes()],
        ),
        "weights": Target(_in(folder, "a.safetensors", load_weights), [weights]),
        "specification": Target(_in(folder, "spec.yaml", _spec), specs, refusals=(YamlError,)),
        "events": Target(
            _in(folder, "e.jsonl", lambda path: list(read_events(path))), [_events(folder)]
        ),
        "tokens": Target(
            _in(folder, "tokens.yaml", read_tokens),
            [NewToken.parse("a:read,train").line.encode()],
            (TokenFileError,),
        ),
        "configuration": Target(
            _in(folder, "c.yaml", lambda path: parse(["--config", str(path)], {})),
            [b"listen: 127.0.0.1:0\ngrpc: {max_message_mib: 4}\ndata_root: [/a, /b]\n"],
            (ConfigError,),
        ),
        "frames": Target(_frames, [_frame_bytes()], (WireError,)),
    }


def _in(folder: Path, name: str, reader: Callable[[Path], object]) -> Callable[[bytes], object]:
    path = folder / name

    def write_and_read(data: bytes) -> object:
        path.write_bytes(data)
        return reader(path)

    return write_and_read


def _image(data: bytes) -> None:
    decode(data, _LIMITS)
    image_size(data, _LIMITS)


def _tar(bundle: Path) -> bytes:
    out = io.BytesIO()
    write_tar(bundle, out)
    return out.getvalue()


def _archive(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as outside:
        inside = Path(outside, "in")
        try:
            unpack_tar(io.BytesIO(data), inside, max_bytes=1 << 20)
        finally:
            assert {path.name for path in Path(outside).iterdir()} <= {"in"}


def _checkpoint(folder: Path) -> Path:
    tensors = {"a": np.zeros(3, np.float32)}
    model = ModelSpec(trunk="resnet18", classes=5, image_size=32)
    manifest = CheckpointManifest(step=3, epoch=1, model=model)
    store.save(folder / "checkpoints", manifest, tensors, tensors)
    return folder / "checkpoints" / store.folder_name(3)


def _spec(path: Path) -> None:
    values = load_yaml_file(path)
    for resolve in (resolve_training, resolve_evaluation, resolve_export):
        with contextlib.suppress(MultigrainError):
            resolve(values)


def _events(folder: Path) -> bytes:
    path = folder / "written.jsonl"
    with EventWriter(path, "job-1") as writer:
        for state in (JobState.QUEUED, JobState.STARTING, JobState.RUNNING):
            writer.append(StateRecord(state), 1)
    return path.read_bytes()


def _frame_bytes() -> bytes:
    wants = EmbeddingOptions(normalize=True, dtype="int8", whiten=True)
    submit = Submit(id=1, caller=2, resolution=32, deadline_ns=3, vector=wants, top_k=5)
    ready = Ready(
        runtime="onnxruntime",
        reason="",
        resolutions=(32,),
        embedding_size=4,
        classes=5,
        max_batch=8,
        load_seconds=1.0,
    )
    result = Result(id=1, vector_bytes=16)
    return encode(submit, 3) + b"abc" + encode(ready) + encode(result, 16) + bytes(16)


def _frames(data: bytes) -> None:
    parser = FrameParser(1 << 16)
    for at in range(0, len(data), 7):
        list(parser.feed(data[at : at + 7]))

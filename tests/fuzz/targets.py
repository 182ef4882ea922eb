"""Every way by which bytes from elsewhere are read, with examples of what is right.

A target takes bytes and raises nothing: what its reader is documented to raise is its answer.
"""

from __future__ import annotations

import contextlib
import io
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save as save_tensors

from multigrain.bundle import tar
from multigrain.bundle.folder import TarSource, read, unpack_tar
from multigrain.bundle.manifest import MANIFEST_NAME
from multigrain.bundle.reference import read_reference
from multigrain.bundle.tar import TarError
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
from multigrain.events.records import JobState, LossRecord, StateRecord
from multigrain.images.cost import decode_cost
from multigrain.images.decode import decode, image_size
from multigrain.images.limits import ImageLimits
from multigrain.jobs import ipc
from multigrain.specs.resolve import resolve_evaluation, resolve_export, resolve_training
from multigrain.specs.training import ModelSpec
from multigrain.strict_yaml import YamlError, load_yaml_file
from multigrain.v1.inference import service_pb2
from multigrain.weights.load import load_weights
from multigrain.whitening import read_whitening
from multigrain_server.access.client import Origin
from multigrain_server.access.tokens import NewToken, TokenFileError, read_tokens
from multigrain_server.convert.inference_request import infer_request, join_bytes
from multigrain_server.grpc.interceptor import readable, reading
from multigrain_server.settings_sources import ConfigError, parse
from tests.engine.bundles import EMBEDDING, write_bundle
from tests.engine.pictures import encoded, invalid_images, picture, unusual_images
from tests.images.files import CASES, noise

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
        "job messages": Target(ipc.decode, _job_messages(), (ValueError,)),
        "archive headers": Target(_headers, [_tar(bundle), *_foreign_tars()], (TarError,)),
        "decode cost": Target(decode_cost, [image for _, image in sorted(image_files())], ()),
        "infer request": Target(_infer, [_infer_bytes()]),
    }


def image_targets() -> dict[str, Target]:
    """A target for each image format, by its name."""
    files = sorted(image_files())
    return {
        f"image {form}": Target(_image, [data for name, data in files if name == form])
        for form in sorted({name for name, _ in files})
    }


def image_files() -> Iterator[tuple[str, bytes]]:
    """Small files of every format in several forms; yields the format's name and the file."""
    base = noise(40, 30)
    deep = Image.fromarray((np.arange(40 * 30).reshape(30, 40) * 50).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [noise(20, 16, seed) for seed in (1, 2, 3)]
    modes = {mode: base.convert(mode) for mode in ("L", "RGBA", "LA", "P", "1", "CMYK")}
    for progressive in (False, True):
        yield "jpeg", encoded(base, "JPEG", progressive=progressive, exif=exif.tobytes())
    yield "jpeg", encoded(modes["CMYK"], "JPEG", comment=b"a comment", icc_profile=b"x" * 200)
    yield "jpeg", (CASES / "lossless.jpg").read_bytes()
    yield "jpeg", (CASES / "arithmetic-progressive.jpg").read_bytes()
    for image in (base, deep, *(modes[mode] for mode in ("L", "RGBA", "LA", "P", "1"))):
        yield "png", encoded(image, "PNG")
    yield "png", (CASES / "grey4-trns5.png").read_bytes()
    yield "png", (CASES / "ztxt.png").read_bytes()
    yield "gif", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], comment=b"c")
    yield "gif", encoded(modes["P"], "GIF", transparency=3)
    for options in ({"lossless": True}, {"quality": 60}, {"exif": exif.tobytes()}):
        yield "webp", encoded(modes["RGBA"], "WEBP", **options)
    yield "webp", encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4"):
        image = modes["1"] if compression == "group4" else base
        yield "tiff", encoded(image, "TIFF", compression=compression)
    yield "tiff", encoded(deep, "TIFF")
    for mode in ("RGBA", "L", "P", "1"):
        yield "bmp", encoded(modes[mode], "BMP")
    yield "avif", encoded(modes["RGBA"], "AVIF", quality=50)


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
    with TarSource(bundle) as source:
        out.writelines(source.chunks(1 << 20))
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


def _headers(data: bytes) -> None:
    for entry in tar.entries(io.BytesIO(data), max_entries=100):
        assert entry.size >= 0


def _foreign_tars() -> Iterator[bytes]:
    """As other programs write archives: with long names and attributes."""
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as archive:
            for name in ("m/", "m/model.json", f"m/{'n' * (90 if form == 0 else 300)}"):
                info = tarfile.TarInfo(name)
                info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
                info.size = 0 if name.endswith("/") else 5
                info.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1
                archive.addfile(info, io.BytesIO(b"hello"))
        yield out.getvalue()


def _job_messages() -> list[bytes]:
    messages: list[ipc.Message] = [
        ipc.GuardHello("t", 0, 1),
        ipc.Hello("t", 0, 2, 3),
        ipc.Ready(),
        ipc.Emit(StateRecord(JobState.RUNNING)),
        ipc.Emit(LossRecord(1, 2, 1, 1, 0.5, 0.1, 0.2, 0.3)),
        ipc.Failed("STORAGE", "full", "path"),
        ipc.Done(True, "stopped"),
        ipc.Exit(1, 9),
    ]
    return [ipc.encode(message) for message in messages]


def _infer(data: bytes) -> None:
    message = readable(reading(service_pb2.ModelInferRequest.FromString)(data))
    origin = Origin(client="fuzz", connection="ipv4:127.0.0.1:1")
    infer_request(message, "m", max_images=8, sender=origin, received_ns=1, deadline_ns=0)


def _infer_bytes() -> bytes:
    message = service_pb2.ModelInferRequest(model_name="m", id="1")
    tensor = message.inputs.add(name="images", datatype="BYTES", shape=[2, 1])
    tensor.contents.bytes_contents.extend([b"a", b"bc"])
    message.outputs.add(name="scores").parameters["classification"].int64_param = 3
    message.parameters["resolution"].int64_param = 32
    message.parameters["timeout"].int64_param = 1000
    message.raw_input_contents.append(join_bytes([b"a", b"bc"]))
    return message.SerializeToString()


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

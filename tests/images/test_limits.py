"""The limits of an image: the same in every job as in serving."""

from __future__ import annotations

import ast
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from multigrain.data.image_folder import scan
from multigrain.data.probe import probe
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.cost import decode_cost
from multigrain.images.decode import decode
from multigrain.images.heif import open_heif
from multigrain.images.limits import DEFAULT_LIMITS, ImageLimits, read_limits, write_limits
from multigrain.images.picture import Picture
from multigrain.images.webp import WebP
from tests.images.files import encode, noise
from tests.images.isobmff import crop, with_properties
from tests.images.pngs import RGB, RGBA, SIGNATURE, chunk, header
from tests.images.test_heif import avif

ROOT = Path(__file__).parents[2] / "multigrain"
# Functions that decode -> number of arguments with the limits.
DECODERS = {"decode": 2, "decode_image": 2, "image_size": 2, "preprocess": 3, "crop": 3}


def test_every_job_decodes_with_the_limits_of_its_dataset() -> None:
    calls, without = 0, []
    for package in ("data", "evaluate", "export", "train"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                    continue
                expected = DECODERS.get(node.func.id, 0)
                if not expected:
                    continue
                calls += 1
                text = ast.unparse(node)
                limits = ast.unparse(node.args[expected - 1]) if len(node.args) >= expected else ""
                if not limits.endswith(".limits"):
                    without.append(f"{path.name}:{node.lineno}: {text}")
    assert calls >= 9
    assert without == []


def test_limits_are_read_as_written_and_default_without_a_file(tmp_path: Path) -> None:
    path = tmp_path / "image_limits.json"
    assert read_limits(path) == DEFAULT_LIMITS
    limits = ImageLimits(1234, 178_000_000, None, 2**28, 7.5)
    write_limits(path, limits)
    assert read_limits(path) == limits


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"max_bytes": 1e999}', b"\xff"])
def test_damaged_limits_are_an_error_that_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image_limits.json"
    path.write_bytes(content)
    with pytest.raises(MultigrainError, match="resume the job") as caught:
        read_limits(path)
    assert caught.value.kind is ErrorKind.STORAGE


FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


@pytest.mark.parametrize("form", [*FORMATS, "AVIF", "cropped AVIF"])
def test_pillows_limit_is_not_the_lower_one(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow itself refuses pictures of twice as many pixels."""
    if form in FORMATS:
        data = encode(noise(40, 30), form)
    else:
        data = avif(noise(40, 40))
        data = with_properties(data, crop(40, 30)) if form == "cropped AVIF" else data
    limits = ImageLimits(max_pixels=1600)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode(data, limits).shape == ((40, 40, 3) if form == "AVIF" else (30, 40, 3))
    if form == "WEBP":  # the others do not come to Pillow's check
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(Image.DecompressionBombError):
            opened(data).load()


def opened(data: bytes) -> Picture:
    """The picture of a file whose size is not compared with a limit."""
    return WebP(data) if data.startswith(b"RIFF") else open_heif(data)


def test_what_is_served_can_be_trained_on(tmp_path: Path) -> None:
    """A photo of 50 megapixels, as many phones make: 8192 x 6144."""
    (tmp_path / "a").mkdir()
    Image.new("L", (8192, 6144), 128).save(tmp_path / "a" / "mp50.png", compress_level=1)
    assert probe(scan(tmp_path, ImageLimits(max_pixels=178_000_000)), 0.0) == {}
    with pytest.raises(MultigrainError, match=r"raise serving\.max_image_pixels"):
        probe(scan(tmp_path), 0.0)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with (tmp_path / "a" / "1.tif").open("wb") as file:
        file.truncate(2**40)
    folder = scan(tmp_path)
    with pytest.raises(MultigrainError, match=r"raise serving\.max_image_bytes") as caught:
        folder.read(0)
    assert caught.value.kind is ErrorKind.IMAGE_TOO_LARGE


def test_a_picture_that_takes_too_much_memory_is_refused_before_it_is_decoded() -> None:
    data = encode(noise(400, 300), "JPEG", progressive=True)
    with pytest.raises(MultigrainError) as caught:
        decode(data, ImageLimits(max_decode_bytes=2**20))
    assert caught.value.kind is ErrorKind.IMAGE_TOO_LARGE
    for part in ("MiB of memory", "limit of 1 MiB", "baseline", "serving.max_decode_bytes"):
        assert part in caught.value.message


def test_a_picture_that_takes_too_much_time_is_refused_before_it_is_decoded() -> None:
    data = encode(noise(400, 300), "PNG")
    with pytest.raises(MultigrainError) as caught:
        decode(data, ImageLimits(max_decode_seconds=1e-4))
    assert caught.value.kind is ErrorKind.IMAGE_TOO_LARGE
    for part in ("seconds of processor time", "limit of 0.0001", "serving.max_decode_seconds"):
        assert part in caught.value.message


def plain_png(width: int, height: int, depth: int, color: int) -> bytes:
    """A black PNG of any size."""
    row = bytes(1 + width * {0: 1, 2: 3, 6: 4}[color] * depth // 8)
    packer = zlib.compressobj(1)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    parts = header(width, height, depth, color), chunk(b"IDAT", body), chunk(b"IEND", b"")
    return SIGNATURE + b"".join(parts)


@pytest.mark.parametrize(
    ("make", "shortest"),
    [
        (lambda: encode(Image.new("RGB", (8160, 6120)), "JPEG"), 0),
        (lambda: encode(Image.new("RGB", (8160, 6120)), "JPEG", progressive=True), 512),
        (lambda: encode(Image.new("RGB", (6000, 4000)), "JPEG", progressive=True), 0),
        (lambda: plain_png(6000, 4000, 8, RGB), 0),
        (lambda: plain_png(6000, 4000, 16, RGBA), 0),
        (lambda: encode(Image.new("RGB", (6000, 4000)), "WEBP", method=0), 0),
        (lambda: encode(Image.new("RGB", (6000, 4000)), "TIFF", compression="tiff_lzw"), 0),
    ],
    ids=["JPEG", "progressive", "progressive whole", "PNG", "16-bit PNG", "WebP", "TIFF"],
)
def test_what_cameras_and_phones_make_is_within_the_limits(
    make: Callable[[], bytes], shortest: int
) -> None:
    cost = decode_cost(make(), shortest)
    assert cost.bytes <= DEFAULT_LIMITS.max_decode_bytes
    assert cost.seconds <= DEFAULT_LIMITS.max_decode_seconds

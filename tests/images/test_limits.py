"""The limits of an image: the same in every job as in serving."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from PIL import Image

from multigrain.data.image_folder import scan
from multigrain.data.probe import probe
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.decode import decode
from multigrain.images.heif import open_heif
from multigrain.images.limits import DEFAULT_LIMITS, ImageLimits, read_limits, write_limits
from multigrain.images.picture import Picture
from multigrain.images.webp import WebP
from tests.images.files import encode, noise
from tests.images.isobmff import crop, with_properties
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
                if len(node.args) < expected or not text.endswith(".limits)"):
                    without.append(f"{path.name}:{node.lineno}: {text}")
    assert calls >= 9
    assert without == []


def test_limits_are_read_as_written_and_default_without_a_file(tmp_path: Path) -> None:
    path = tmp_path / "image_limits.json"
    assert read_limits(path) == DEFAULT_LIMITS
    write_limits(path, ImageLimits(1234, 178_000_000))
    assert read_limits(path) == ImageLimits(1234, 178_000_000)


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
    if form in ("WEBP", "cropped AVIF"):  # the others do not come to Pillow's check
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

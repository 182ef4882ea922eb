"""Encoded images for tests: ordinary, unusual and invalid ones."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from tests.images.files import CASES


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(seed: int = 0, *, size: tuple[int, int] = (48, 40), kind: str = "PNG") -> bytes:
    """A smooth random RGB image."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return encoded(small.resize(size, Image.Resampling.BICUBIC), kind)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(side: int = 20_000) -> bytes:
    """A valid gray PNG of ``side`` x ``side`` pixels in a few hundred kilobytes."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    row = b"\0" * (1 + (side + 7) // 8)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", data)
        + _chunk(b"IEND", b"")
    )


def unusual_images() -> dict[str, bytes]:
    """Unusual images that must be computed."""
    base = Image.open(io.BytesIO(picture(3)))
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray((np.arange(48 * 40).reshape(40, 48) * 30).astype(np.uint16))
    frames = [Image.open(io.BytesIO(picture(seed))) for seed in (1, 2, 3)]
    return {
        "1x1": encoded(Image.new("RGB", (1, 1), (10, 200, 30))),
        "gray": encoded(base.convert("L")),
        "alpha": encoded(base.convert("RGBA")),
        "palette": encoded(base.convert("P")),
        "cmyk": encoded(base.convert("CMYK"), "JPEG"),
        "16-bit": encoded(deep),
        "animated": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "rotated by EXIF": encoded(base, "JPEG", exif=exif.tobytes()),
        "webp": encoded(base, "WEBP"),
        "bmp": encoded(base, "BMP"),
        "tiff": encoded(base, "TIFF"),
        "avif": encoded(base, "AVIF"),
        "lossless JPEG": (CASES / "lossless.jpg").read_bytes(),
        "gray PNG of 4 bits": (CASES / "grey4-trns5.png").read_bytes(),
        "long metadata": (CASES / "iccp.png").read_bytes(),
        "one pixel high": encoded(base.resize((300, 1))),
    }


def invalid_images() -> dict[str, bytes]:
    """Invalid images, which must be refused."""
    whole = picture(4, size=(200, 200), kind="JPEG")
    return {
        "0 bytes": b"",
        "text": b"this is not an image",
        "truncated JPEG": whole[: len(whole) // 2],
        "truncated PNG": picture(5, size=(200, 200))[:500],
        "bomb": png_bomb(),
        "12-bit JPEG": (CASES / "jpeg12.jpg").read_bytes(),
    }

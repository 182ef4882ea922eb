"""What a file is by its first bytes, and the tables of extensions."""

from __future__ import annotations

import bz2
import gzip
import struct
import subprocess
import sys
import zipfile
from io import BytesIO

import pytest

from multigrain.images.formats import (
    NAMED_EXTENSIONS,
    OPTIONAL_EXTENSIONS,
    READ_EXTENSIONS,
    identify,
)
from tests.images.files import encode, noise


def archive() -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("a.jpg", b"x")
    return file.getvalue()


def ftyp(brand: bytes, *compatible: bytes) -> bytes:
    body = b"ftyp" + brand + bytes(4) + b"".join(compatible)
    return (len(body) + 4).to_bytes(4, "big") + body + bytes(100)


def icon(kind: int, count: int, size: int = 100, offset: int | None = None) -> bytes:
    """An ICO (1) or CUR (2)."""
    offset = 6 + 16 * count if offset is None else offset
    entry = struct.pack("<4B2H2I", 16, 16, 0, 0, 1, 32, size, offset)
    return struct.pack("<3H", 0, kind, count) + entry * max(count, 1) + bytes(size)


def targa(kind: int, bits: int, palette: int = 0, width: int = 7, flags: int = 0) -> bytes:
    """A Targa file of the first version: without a mark at its end."""
    head = (0, palette > 0, kind, 0, palette, 24 * (palette > 0), 0, 0, width, 5, bits, flags)
    return struct.pack("<3B2HB4H2B", *head) + b"\x9c" * 400


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"])
def test_a_format_that_is_read_is_recognized(form: str) -> None:
    kind = identify(encode(noise(8, 8), form))
    assert kind is not None
    assert kind.read
    assert kind.name == form


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (encode(noise(8, 8), "JPEG2000"), "a JPEG 2000 image"),
        (encode(noise(8, 8), "JPEG2000", no_jp2=True), "a JPEG 2000 image"),
        (encode(noise(8, 8), "PPM"), "a PNM image"),
        (encode(noise(8, 8), "ICO"), "an icon (ICO)"),
        (encode(noise(8, 8), "ICNS"), "an icon (ICNS)"),
        (encode(noise(8, 8), "EPS"), "a PostScript file"),
        (encode(noise(8, 8), "PDF"), "a PDF document"),
        (encode(noise(8, 8), "PCX"), "a PCX image"),
        (encode(noise(8, 8), "TGA", compression="tga_rle"), "a Targa image"),
        (encode(noise(8, 8), "SGI"), "an SGI image"),
        (encode(noise(8, 8).convert("1"), "XBM"), "an X11 image (XBM)"),
        (b"\xff\x0a\xfa\x1f", "a JPEG XL image"),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "a JPEG XL image"),
        (b"8BPS\x00\x01", "a Photoshop document"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"<?xml version='1.0'?>\n<!-- Inkscape -->\n<svg>", "an SVG drawing"),
        (ftyp(b"crx "), "a camera raw file"),
        (b"FUJIFILMCCD-RAW 0201", "a camera raw file"),
        (ftyp(b"isom", b"mp41", b"avc1"), "a video"),
        (ftyp(b"qt  "), "a video"),
        (b"\x1aE\xdf\xa3\x01\x00", "a video"),
        (b"RIFF\x00\x00\x00\x00AVI LIST", "a video"),
        (b"<!DOCTYPE html>\n<html><head>", "an HTML page"),
        (b"\n\n<html lang='en'>", "an HTML page"),
        ("<!doctype HTML>ü".encode("utf-16"), "an HTML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "an XML document"),
        (b'{"error": "not found"}', "a JSON document"),
        (b'[{"a": 1}]', "a JSON document"),
        (b"Access denied", "a text"),
        (b"BAD REQUEST: the token has expired", "a text"),
        (b"BA\xe9D REQUEST: the token has expired", None),
        (b"BA" + bytes(12) + b"BM" + bytes(20), "an OS/2 bitmap array"),
        (b"ID3 trees are fun", "a text"),
        (b"ID3\x03\0\0\0\0", "a sound file"),
        (b"FORM 27-B/6 must be filled", "a text"),
        (b"FORM\0\0\1\0ILBMBMHD", "an IFF image"),
        (b"RIFF RAFF the text", "a text"),
        (b"P1 is a text of something", "a text"),
        (b"P5 # 8 bits\n# 3\n 20\t30\n255\n\xff\0", "a PNM image"),
        (b"P7\nWIDTH 8\n", "a PNM image"),
        (b"P1\n2 1\n0 1\n", "a PNM image"),
        (b"qoif? What is that?", "a text"),
        (b"qoif\0\0\0\x08", "a QOI image"),
        (b"BZh is how bzip2 starts", "a text"),
        (bz2.compress(b"x"), "bzip2-compressed data"),
        (b"OggS is how Ogg starts", "a text"),
        (b"My ftyp is a text", "a text"),
        (b"APNG is animated", "a text"),
        (b"?PNG\r\n\x1a\n\0\0\0\rIHDR", "a PNG damaged by a transfer as text"),
        (b"\0\0\1\0\0\0\0\x83\0\0\0a\0\0\0\2\x08\0\x03\x1c\xc6,", None),  # JBIG
        (icon(2, count=1), "a cursor (CUR)"),
        (icon(1, count=3), "an icon (ICO)"),
        (icon(1, count=0), None),
        (icon(1, count=1, size=0), None),
        (icon(2, count=2, offset=22), None),
        (targa(2, 24), "a Targa image"),
        (targa(3, 8), "a Targa image"),
        (targa(10, 32, flags=0x28), "a Targa image"),
        (targa(1, 8, palette=256), "a Targa image"),
        (targa(9, 8, palette=16), "a Targa image"),
        (targa(1, 8), None),
        (targa(2, 24, palette=256), None),
        (targa(2, 8), None),
        (targa(2, 24, width=0), None),
        (targa(2, 24, flags=0xC0), None),
        (b"BMW: see the list of models below", "a text"),
        ("Zugriff verweigert: ä".encode("utf-16-be"), None),  # without its mark: not sure
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        (b"../.git/annex/objects/x/y", "a git-annex pointer"),
        (b"data:image/png;base64,iVBORw0KGgo", "a data URI"),
        (b"/9j/4AAQSkZJRgABAQAAAQABAAD", "the base64 text of an image"),
        (b"HTTP/1.1 200 OK\r\n", "an HTTP response with its headers"),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\n", "a multipart form"),
        (gzip.compress(b"x", mtime=0), "gzip-compressed data"),
        (archive(), "a ZIP archive or a document made of one"),
        (b"\x93NUMPY\x01\x00", "a NumPy array"),
        (bytes(128) + b"DICM" + bytes(20), "a DICOM file"),
        (b"\x00\x05\x16\x07\x00\x02", "a macOS resource file (its name starts with '._')"),
        (b"\x89PNG\n\x1a\n\x00\x00\x00\rIHDR", "a PNG damaged by a transfer as text"),
        (b"\xef\xbf\xbdPNG\r\n\x1a\n", "a PNG damaged by a conversion to text"),
        (b"\xef\xbb\xbf\x80" + encode(noise(8, 8), "PNG"), "an image after 4 other bytes"),
        (b"\0\1\2" + encode(noise(8, 8), "JPEG"), "an image after 3 other bytes"),
        (bytes(500), "500 zero bytes"),
        (bytes(range(1, 256)), None),
        (b"\xe9" * 3000, None),
        ("é".encode() * 3000, "a text"),
        (b" \n", None),
        (b"x" * 500 + b"\xff" * 600, None),
    ],
)
def test_other_files_are_named(data: bytes, name: str | None) -> None:
    kind = identify(data)
    assert (kind.name if kind else None) == name
    assert kind is None or (not kind.read and kind.todo)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (ftyp(b"avif", b"mif1"), "AVIF"),
        (ftyp(b"avis", b"avif"), "AVIF"),
        (ftyp(b"mif1", b"avif", b"miaf"), "AVIF"),
        (ftyp(b"heic", b"mif1"), "HEIC"),
        (ftyp(b"mif1", b"heic"), "HEIC"),
        (ftyp(b"msf1", b"hevc"), "HEIC"),
        (ftyp(b"isom", b"avif", b"mif1", b"miaf"), "AVIF"),
        (ftyp(b"mp42", b"mif1", b"heic"), "HEIC"),
        # Of another or an unnamed compression: the reader looks for it.
        (ftyp(b"avci", b"mif1", b"avci"), "HEIC"),
        (ftyp(b"heif", b"mif1"), "HEIC"),
        (ftyp(b"isom", b"mif1"), "HEIC"),
    ],
)
def test_the_brands_tell_avif_from_heic(data: bytes, name: str) -> None:
    kind = identify(data)
    assert kind is not None
    assert (kind.name, kind.read) == (name, True)


def test_every_prefix_of_a_file_is_safe() -> None:
    for form in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000"):
        data = encode(noise(8, 8), form)
        for length in range(1, min(600, len(data))):
            identify(data[:length])


def test_extensions_are_lower_case_and_in_one_table_only() -> None:
    tables = [READ_EXTENSIONS, OPTIONAL_EXTENSIONS, tuple(NAMED_EXTENSIONS)]
    every = [extension for table in tables for extension in table]
    assert len(every) == len(set(every))
    assert all(e.startswith(".") and e == e.lower() for e in every)


def test_the_module_is_light() -> None:
    """The client imports it: without numpy and Pillow."""
    program = (
        "import sys, multigrain.images.formats; "
        "print([m for m in ('numpy', 'PIL', 'pydantic') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"

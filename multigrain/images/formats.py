"""The image formats: file extensions, and what a file is by its first bytes.

Light: no numpy and no Pillow, because the client and the listing of folders import it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# MPO, which many phones write as .jpg, is a JPEG: its first image is read.
FORMAT_NAMES: Final = "JPEG, PNG, WebP, AVIF, BMP, GIF or TIFF"

# Extensions of files that are read.
READ_EXTENSIONS: Final = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo", ".jps"),
    *(".jpg_large", ".jpeg_large"),
    *(".png", ".apng", ".webp", ".avif", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
)
# Extensions of files that are read with the extra multigrain[heif].
OPTIONAL_EXTENSIONS: Final = (".heic", ".heif", ".hif")
# Extensions of pictures that are not read, and the name of their kind.
NAMED_EXTENSIONS: Final[dict[str, str]] = {
    **dict.fromkeys((".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"), "JPEG 2000"),
    ".jxl": "JPEG XL",
    ".jls": "JPEG-LS",
    **dict.fromkeys((".jxr", ".wdp", ".hdp"), "JPEG XR"),
    **dict.fromkeys((".psd", ".psb"), "Photoshop"),
    **dict.fromkeys((".svg", ".svgz"), "SVG"),
    ".pdf": "PDF",
    **dict.fromkeys((".eps", ".ps", ".ai"), "PostScript"),
    **dict.fromkeys((".ico", ".cur"), "icon"),
    ".icns": "icon",
    **dict.fromkeys((".pnm", ".ppm", ".pgm", ".pbm", ".pam", ".pfm"), "PNM"),
    **dict.fromkeys(
        (
            *(".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".dng", ".orf"),
            *(".rw2", ".raf", ".pef", ".srw", ".x3f", ".mrw", ".3fr", ".iiq", ".rwl", ".raw"),
        ),
        "camera raw",
    ),
    ".exr": "OpenEXR",
    **dict.fromkeys((".hdr", ".pic"), "Radiance HDR"),
    **dict.fromkeys((".dcm", ".dicom"), "DICOM"),
    **dict.fromkeys((".fits", ".fit"), "FITS"),
    ".nii": "NIfTI",
    **dict.fromkeys((".dds", ".ktx", ".ktx2"), "texture"),
    **dict.fromkeys((".tga", ".targa"), "Targa"),
    ".pcx": "PCX",
    ".xcf": "GIMP",
    ".qoi": "QOI",
    ".flif": "FLIF",
    ".bpg": "BPG",
    ".mng": "MNG",
    **dict.fromkeys((".wmf", ".emf"), "Windows metafile"),
    **dict.fromkeys((".djvu", ".djv"), "DjVu"),
    **dict.fromkeys((".xbm", ".xpm"), "X11 image"),
    **dict.fromkeys((".sgi", ".rgb", ".bw"), "SGI"),
    ".ras": "Sun raster",
    **dict.fromkeys((".dpx", ".cin"), "DPX"),
}

_SAVE: Final = "save it as JPEG or PNG"
_FRAME: Final = "extract a frame as JPEG or PNG"
_UNPACK: Final = "unpack it first"
_COPY_AGAIN: Final = "look at what it says, and download or export the image again"


@dataclass(frozen=True)
class Kind:
    """What a file is.

    Args:
        name: for a format that is read, its name ("JPEG"); otherwise a phrase that completes
            "this is ...", for example "an HTML page".
        todo: what to do about a file that is not read; empty for a format that is read.
        damaged: whether it was an image before something changed its bytes.
    """

    name: str
    todo: str = ""
    damaged: bool = False

    @property
    def read(self) -> bool:
        """Whether a reader exists: JPEG, PNG, WEBP, BMP, GIF, TIFF, AVIF and HEIC."""
        return not self.todo


_JPEG: Final = Kind("JPEG")
_PNG: Final = Kind("PNG")
_AVIF: Final = Kind("AVIF")
_HEIC: Final = Kind("HEIC")
_RAW: Final = Kind("a camera raw file", "develop it and save it as JPEG or PNG")
_VIDEO: Final = Kind("a video", _FRAME)
_TEXTURE: Final = Kind("a texture", _SAVE)
_AUDIO: Final = Kind("a sound file", "send an image")
_PROGRAM: Final = Kind("a program", "send an image")
_OFFICE: Final = Kind("a Microsoft Office or Thumbs.db file", "send an image")

# First bytes -> kind, tried in this order.
_SIGNATURES: Final[tuple[tuple[bytes, Kind], ...]] = (
    (b"\xff\xd8\xff", _JPEG),
    (b"\x89PNG\r\n\x1a\n", _PNG),
    (b"GIF87a", Kind("GIF")),
    (b"GIF89a", Kind("GIF")),
    # Panasonic's and Canon's raw files resemble TIFF.
    (b"IIU\x00", _RAW),
    (b"II\x1a\x00\x00\x00HEAPCCDR", _RAW),
    (b"FUJIFILMCCD-RAW", _RAW),
    (b"\x00MRM", _RAW),
    (b"II*\x00", Kind("TIFF")),
    (b"MM\x00*", Kind("TIFF")),
    (b"II+\x00", Kind("TIFF")),
    (b"MM\x00+", Kind("TIFF")),
    (b"II\xbc", Kind("a JPEG XR image", _SAVE)),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", Kind("a JPEG 2000 image", _SAVE)),
    (b"\xff\x4f\xff\x51", Kind("a JPEG 2000 image", _SAVE)),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", Kind("a JPEG XL image", _SAVE)),
    (b"\xff\x0a", Kind("a JPEG XL image", _SAVE)),
    (b"%!PS", Kind("a PostScript file", _SAVE)),
    (b"\xc5\xd0\xd3\xc6", Kind("a PostScript file", _SAVE)),
    (b"BPG\xfb", Kind("a BPG image", _SAVE)),
    (b"\x8aMNG\r\n\x1a\n", Kind("an MNG animation", _FRAME)),
    (b"\x8bJNG\r\n\x1a\n", Kind("a JNG image", _SAVE)),
    (b"\x76\x2f\x31\x01", Kind("an OpenEXR image", _SAVE)),
    (b"#?RADIANCE", Kind("a Radiance HDR image", _SAVE)),
    (b"#?RGBE", Kind("a Radiance HDR image", _SAVE)),
    (b"\x80\x2a\x5f\xd7", Kind("a Cineon image", _SAVE)),
    (b"DDS \x7c\x00\x00\x00", _TEXTURE),
    (b"\xabKTX ", _TEXTURE),
    (b"\x01\xda\x00", Kind("an SGI image", _SAVE)),
    (b"\x01\xda\x01", Kind("an SGI image", _SAVE)),
    (b"\x59\xa6\x6a\x95", Kind("a Sun raster image", _SAVE)),
    (b"\xd7\xcd\xc6\x9a", Kind("a Windows metafile", _SAVE)),
    (b"/* XPM", Kind("an X11 image (XPM)", _SAVE)),
    (b"SIMPLE  =", Kind("a FITS image", "scale its values and save it as PNG")),
    (b"\x1aE\xdf\xa3", _VIDEO),
    (b"\x00\x00\x01\xba", _VIDEO),
    (b"\x00\x00\x01\xb3", _VIDEO),
    (b"FLV\x01", _VIDEO),
    (b"0&\xb2u\x8ef\xcf\x11", _VIDEO),  # ASF: .wmv
    (b"OggS\x00", Kind("an Ogg file", _FRAME)),
    *((b"ID3" + bytes((version,)), _AUDIO) for version in (2, 3, 4)),
    (b"PK\x03\x04", Kind("a ZIP archive or a document made of one", _UNPACK)),
    (b"PK\x05\x06", Kind("an empty ZIP archive", "send an image")),
    (b"\x1f\x8b\x08", Kind("gzip-compressed data", _UNPACK)),
    (b"\xfd7zXZ\x00", Kind("xz-compressed data", _UNPACK)),
    (b"\x28\xb5\x2f\xfd", Kind("zstd-compressed data", _UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", Kind("a 7z archive", _UNPACK)),
    (b"Rar!\x1a\x07", Kind("a RAR archive", _UNPACK)),
    (b"\x93NUMPY", Kind("a NumPy array", _SAVE)),
    (b"\x89HDF\r\n\x1a\n", Kind("an HDF5 file", "extract the images")),
    (b"SQLite format 3\x00", Kind("an SQLite database", "extract the images")),
    (b"\x00\x05\x16\x07", Kind("a macOS resource file (its name starts with '._')", "remove it")),
    (b"\x00\x00\x00\x01Bud1", Kind("a macOS .DS_Store file", "remove it")),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", _OFFICE),
    (b"\x7fELF", _PROGRAM),
    (b"MZ\x90\x00", _PROGRAM),
    (b"{\\rtf", Kind("an RTF document", "send an image")),
    (b"\x80\x02}", Kind("a Python pickle", "extract the images")),
    (b"\x80\x04\x95", Kind("a Python pickle", "extract the images")),
)

# First bytes with which a text may start too: tried if a file is no text.
_WORDS: Final[tuple[tuple[bytes, Kind], ...]] = (
    # Fujifilm's, Olympus's and Sigma's raw files.
    (b"IIRO", _RAW),
    (b"IIRS", _RAW),
    (b"MMOR", _RAW),
    (b"FOVb", _RAW),
    (b"8BPS", Kind("a Photoshop document", _SAVE)),
    (b"icns", Kind("an icon (ICNS)", _SAVE)),
    (b"gimp xcf", Kind("a GIMP document", _SAVE)),
    (b"qoif", Kind("a QOI image", _SAVE)),
    (b"FLIF", Kind("a FLIF image", _SAVE)),
    (b"SDPX", Kind("a DPX image", _SAVE)),
    (b"XPDS", Kind("a DPX image", _SAVE)),
    (b"AT&TFORM", Kind("a DjVu document", _SAVE)),
    (b"fLaC", _AUDIO),
    (b"BZh", Kind("bzip2-compressed data", _UNPACK)),
    (b"MATLAB 5.0", Kind("a MATLAB file", "extract the images")),
    (b"PAR1", Kind("a Parquet file", "extract the images")),
    (b"bplist00", Kind("a macOS property list", "send an image")),
)

# Brands of the ISO base media format that are not video (ISO/IEC 23008-12, AV1 image file).
AVIF_BRANDS: Final = frozenset({b"avif", b"avis"})
_HEIC_BRANDS: Final = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
)
# Still pictures and sequences of any compression: the reader looks which it is.
_PICTURE_BRANDS: Final = frozenset(
    (b"mif1 mif2 msf1 miaf heif avci avcs jpeg jpgs j2ki j2is vvic vvis evbi evbs").split()
)
_OTHER_BRANDS: Final = {
    b"crx ": _RAW,
    b"jp2 ": Kind("a JPEG 2000 image", _SAVE),
    b"jxl ": Kind("a JPEG XL image", _SAVE),
    b"M4A ": _AUDIO,
}
_ARRAY_ENTRIES: Final = (b"BM", b"CI", b"IC", b"CP", b"PT")  # of an OS/2 bitmap array
_PNM: Final = re.compile(
    rb"P[1-6Ff](\s|#[^\n]*\n)+\d+(\s|#[^\n]*\n)+\d+\s|P7\n(#[^\n]*\n)*[A-Z]+ \S+\n|P7 332\n"
)
# First box of an old QuickTime file.
_QUICKTIME: Final = frozenset({b"moov", b"mdat", b"wide", b"pnot"})

# Sizes of the second header of a bitmap, of which some files consist without the first.
_BITMAP_HEADERS: Final = tuple(bytes((size, 0, 0, 0)) for size in (40, 52, 56, 108, 124))

_TEXT_START: Final = 1024
_HTML: Final = re.compile(r"<(!doctype\s+html|html|head|body|title|script|div|meta)\b", re.I)
_BASE64: Final = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkqA", "TU0AK")


def identify(data: bytes) -> Kind | None:
    """Says what a file is by its contents; its name does not matter.

    Args:
        data: the file, not empty.

    Returns:
        A kind that is read, or one that is not and its name; None, if nothing is recognized.
    """
    for signature, kind in _SIGNATURES:
        if data.startswith(signature):
            return kind
    if _is_bmp(data):
        return Kind("BMP")
    if _PNM.match(data[:_TEXT_START]):
        return Kind("a PNM image", _SAVE)
    if b"%PDF-" in data[:_TEXT_START]:
        return Kind("a PDF document", "save its page or the image in it as JPEG or PNG")
    return _damaged_signature(data) or _text(data) or _binary(data) or _preceded(data)


def _binary(data: bytes) -> Kind | None:
    """Names what is no text by bytes that a text could have too, or that are not at the start."""
    for word, kind in _WORDS:
        if data.startswith(word):
            return kind
    if data[:2] == b"BA" and data[14:16] in _ARRAY_ENTRIES:
        return Kind("an OS/2 bitmap array", _SAVE)
    if data[:4] in (b"RIFF", b"FORM"):
        return _riff(data)
    if data[4:8] == b"ftyp":
        return _media(data)
    if data[4:8] in _QUICKTIME:
        return _VIDEO
    if _is_icon(data):
        icon = data[2] == 1
        return Kind("an icon (ICO)" if icon else "a cursor (CUR)", _SAVE)
    if data[40:44] == b" EMF":
        return Kind("a Windows metafile", _SAVE)
    if data[128:132] == b"DICM":
        return Kind("a DICOM file", "apply its window and save it as PNG")
    if data[344:348] in (b"n+1\x00", b"ni1\x00"):
        return Kind("a NIfTI volume", "save its slices as PNG")
    if data[257:262] == b"ustar":
        return Kind("a tar archive", _UNPACK)
    if data[:2] == b"\x0a\x05" and data[2:3] == b"\x01":
        return Kind("a PCX image", _SAVE)
    if data[-18:-2] == b"TRUEVISION-XFILE" or _is_targa(data):
        return Kind("a Targa image", _SAVE)
    if len(data) > 15 and not data.strip(b"\x00"):
        return Kind(f"{len(data)} zero bytes", "copy the file again: its contents were lost")
    return None


def _is_bmp(data: bytes) -> bool:
    """Whether the sizes in a header exist: many texts start with BM too.

    The file header is missing where a bitmap was saved from memory (.dib): one plane follows the
    size of the picture.
    """
    if data[:2] == b"BM":
        size = int.from_bytes(data[14:18], "little")
        return len(data) < 18 or size == 12 or 16 <= size <= 256
    return data[:4] in _BITMAP_HEADERS and data[12:14] == b"\x01\x00" and len(data) >= 40


def _is_icon(data: bytes) -> bool:
    """Whether a header of ICO or CUR has an entry, which says where a picture lies after it."""
    count, size, offset = (
        int.from_bytes(data[at:end], "little") for at, end in ((4, 6), (14, 18), (18, 22))
    )
    known = data[:4] in (b"\x00\x00\x01\x00", b"\x00\x00\x02\x00")
    return known and count > 0 and size > 0 and offset >= 6 + 16 * count


def _is_targa(data: bytes) -> bool:
    """Whether the fields of a header fit together: Targa 1 has neither first nor last bytes."""
    if len(data) < 18:
        return False
    has_map, kind, bits = data[1], data[2], data[16]
    depths = {1: (8, 16), 2: (15, 16, 24, 32), 3: (8, 16)}.get(kind & 7, ())
    map_length, map_bits = int.from_bytes(data[5:7], "little"), data[7]
    mapped = map_length > 0 and map_bits in (15, 16, 24, 32) if has_map else not any(data[3:8])
    return (
        kind in (1, 2, 3, 9, 10, 11)
        and has_map == (kind & 7 == 1)
        and mapped
        and bits in depths
        and any(data[12:14])
        and any(data[14:16])
        and data[17] & 0xC0 == 0
        and data[17] & 15 in (0, 1, 8)
    )


def _riff(data: bytes) -> Kind | None:
    form = data[8:12]
    if form == b"WEBP" or (data[:4] == b"RIFF" and len(data) < 12):
        return Kind("WEBP")
    if form == b"AVI ":
        return _VIDEO
    if form == b"WAVE":
        return _AUDIO
    return Kind("an IFF image", _SAVE) if data[:4] == b"FORM" else None


def brands(data: bytes) -> list[bytes]:
    """Returns the brands of a file of the ISO base media format: the major one, then the others."""
    size = min(int.from_bytes(data[:4], "big"), _TEXT_START)
    return [data[8:12], *(data[at : at + 4] for at in range(16, size, 4))]


def _media(data: bytes) -> Kind:
    """Names a file of the ISO base media format by its brands.

    The major one may be that of the format ("isom"), or say nothing of the compression ("mif1"):
    then the compatible ones do.
    """
    named = brands(data)
    if named[0] in _OTHER_BRANDS:
        return _OTHER_BRANDS[named[0]]
    for brand in named:
        if brand in AVIF_BRANDS:
            return _AVIF
        if brand in _HEIC_BRANDS:
            return _HEIC
    return _VIDEO if _PICTURE_BRANDS.isdisjoint(named) else _HEIC


def _damaged_signature(data: bytes) -> Kind | None:
    """Recognizes images that a transfer as text has changed."""
    stripped = data[1:4] == b"PNG" and b"IHDR" in data[:20]
    if data[:4] == b"\x89PNG" or data[:7] == b"\xc2\x89PNG\r\n" or stripped:
        how = "a PNG damaged by a transfer as text"
    elif data.startswith((b"\xc3\xbf\xc3\x98\xc3\xbf", b"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd")):
        how = "a JPEG damaged by a conversion to text"
    elif data.startswith(b"\xef\xbf\xbdPNG"):
        how = "a PNG damaged by a conversion to text"
    else:
        return None
    return Kind(how, "read and send the file as bytes", damaged=True)


def _preceded(data: bytes) -> Kind | None:
    """Recognizes an image after some bytes that a program wrote before it."""
    found = re.search(rb"\xff\xd8\xff[\xc0-\xef]|\x89PNG\r\n\x1a\n|GIF8[79]a", data[:_TEXT_START])
    if found is None:
        return None
    how = f"an image after {found.start()} other bytes"
    return Kind(how, "send it without them", damaged=True)


def _text(data: bytes) -> Kind | None:
    """Names what a text is: an error page saved as .jpg is the most common case."""
    start = data[:_TEXT_START]
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = start[: len(start) // 2 * 2].decode("utf-16", "replace")
    else:
        try:
            # The cut may divide the last character.
            text = start.decode("utf-8-sig", "strict" if len(data) <= _TEXT_START else "ignore")
        except UnicodeDecodeError:
            return None
        if len(data) > _TEXT_START and len(text.encode()) < len(start) - 7:
            return None
    if sum(c < " " and c not in "\t\r\n\f\x1b" for c in text):
        return None
    text = text.lstrip()
    if text.startswith("version https://git-lfs.github.com/spec/"):
        return Kind("a Git LFS pointer", "run git lfs pull")
    if "/annex/objects/" in text[:200]:
        return Kind("a git-annex pointer", "run git annex get")
    if text.startswith("data:image/"):
        return Kind("a data URI", "send the bytes that its base64 part encodes")
    if text.startswith(_BASE64):
        return Kind("the base64 text of an image", "decode it to bytes first")
    if re.match(
        r"(<\?xml.*?>\s*)?(<!--.*?-->\s*|<!doctype svg.*?>\s*)*<(\w+:)?svg\b", text, re.S | re.I
    ):
        return Kind("an SVG drawing", _SAVE)
    if text.startswith("<") and _HTML.search(text):
        return Kind("an HTML page", _COPY_AGAIN)
    if text.startswith("<?xml") or re.match(r"<\w+[^>]*>", text):
        return Kind("an XML document", _COPY_AGAIN)
    if re.match(r"[\[{]\s*([\"\[{\]}\d-]|null|true|false)", text):
        return Kind("a JSON document", _COPY_AGAIN)
    if text.startswith("HTTP/"):
        return Kind("an HTTP response with its headers", "send its body only")
    if re.match(r"--\S+\r?\ncontent-disposition:", text, re.I):
        return Kind("a multipart form", "send the bytes of its file only")
    if re.match(r"#define \w+_width", text):
        return Kind("an X11 image (XBM)", _SAVE)
    return Kind("a text", _COPY_AGAIN) if text else None

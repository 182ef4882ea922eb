"""Names of files and folders that are no images: those of systems, and those of other kinds.

Imports no package beside the standard library: the client imports it.
"""

from __future__ import annotations

import re

# In lower case. Names that begin with a dot are hidden anyway. Names with "@" or "#" are listed
# one by one: "@home" may be a class.
SYSTEM_NAMES = frozenset(
    {
        # Synology, QNAP and NetApp: thumbnails, packages, recycle bins and snapshots.
        *("@eadir", "@tmp", "@sharesnap", "@recycle", "@recently-snapshot", "@transcode"),
        *("@__thumb", "@synoresource", "@appstore", "@database", "@docker", "@quarantine"),
        *("@sharebin", "@img_bkp_cache", "@s2s", "@synologycloudsync", "@synologydrive"),
        *("#recycle", "#snapshot", "~snapshot", "trashbox", "recycle.bin"),
        # Linux: the root of every ext file system.
        *("lost+found", "aquota.user", "aquota.group"),
        # macOS: left by archives, by the Finder and on disks of other systems.
        *("__macosx", "icon\r", "network trash folder", "temporary items"),
        *("thevolumesettingsfolder", "resource.frk"),
        # Windows.
        *("$recycle.bin", "recycler", "lost.dir", "system volume information"),
        *("config.msi", "$extend", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"),
        # Programs: GoodSync, iTunes and Picasa.
        *("_gsdata_", "ipod photo cache", "picasa originals"),
        # Python.
        "__pycache__",
    }
)
# Snapshots (QNAP: @GMT-2026.11.30-12.00.00), rescued files (found.000), previews of Lightroom.
_SYSTEM_PATTERN = re.compile(r"@gmt-.+|found\.\d{3}|.+\.lrdata")
# The recycle bin of a FAT disk, as Windows writes it: "recycled" may be a class of waste.
_SYSTEM_EXACT = frozenset({"RECYCLED"})

# Extensions of files that are no images: they are not opened. Also those of unfinished downloads.
_OTHER = (
    # Text, tables and settings.
    "txt text md rst rtf tex bib log csv tsv json jsonl ndjson geojson xml xsd xsl html htm "
    "xhtml css yaml yml toml ini cfg conf properties lock srt vtt sub "
    # Documents.
    "doc docx dot odt xls xlsx ods ppt pptx odp pages numbers key epub mobi "
    # Programs.
    "py pyc pyi ipynb sh bash zsh bat cmd ps1 js mjs ts jsx tsx c cc cpp cxx h hpp cu java "
    "class jar go rs rb pl php r rmd m mm swift kt lua jl scala sql proto cmake mk exe dll so "
    "dylib a o lib msi dmg pkg deb rpm apk whl egg "
    # Archives and their checksums.
    "zip tar gz tgz bz2 tbz tbz2 xz txz zst lz4 lzma 7z rar cab iso img md5 sha1 sha256 sha512 "
    "sfv par2 sig asc torrent "
    # Arrays, tables and models.
    "npy npz pkl pickle joblib mat h5 hdf5 hdf parquet feather arrow orc avro tfrecord "
    "tfrecords rec idx lst mdb lmdb db sqlite sqlite3 pt pth ckpt safetensors onnx mindir air "
    "pb pbtxt tflite caffemodel prototxt params weights gguf msgpack nc "
    # Video and sound.
    "mp4 m4v mov avi mkv webm wmv flv mpg mpeg mpe m2ts mts 3gp 3g2 ogv vob mp3 wav flac ogg "
    "oga opus m4a aac wma aif aiff mid midi "
    # Three dimensions, fonts, and what accompanies photographs.
    "obj mtl ply stl off pcd las laz gltf glb fbx blend dae ttf otf woff woff2 xmp aae thm "
    "lrcat lnk url webloc "
    # Unfinished downloads: what there is of an image is not the image.
    "part partial crdownload download filepart aria2 opdownload"
)
OTHER_EXTENSIONS = frozenset(f".{extension}" for extension in _OTHER.split())


def is_system(name: str) -> bool:
    """Whether a file or folder has a name that systems give to their own."""
    lower = name.lower()
    return (
        lower in SYSTEM_NAMES
        or name in _SYSTEM_EXACT
        or _SYSTEM_PATTERN.fullmatch(lower) is not None
    )

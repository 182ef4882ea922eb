"""Bundles: damage is detected, and untrusted archives are unpacked safely."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from multigrain.bundle.folder import TarSource, read, unpack_tar
from multigrain.bundle.manifest import BundleManifest
from multigrain.errors import ErrorKind, MultigrainError
from tests.bundle.bundles import write_bundle

LIMIT = 1 << 20


def packed(path: Path) -> io.BytesIO:
    with TarSource(path) as source:
        content = b"".join(source.chunks(1000))
        assert len(content) == source.size
        return io.BytesIO(content)


def member(name: str, content: bytes = b"x", **changes: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, content


def archive_of(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content) if info.isreg() else None)
    file.seek(0)
    return file


def refusal(archive: io.BytesIO, path: Path, max_bytes: int = LIMIT) -> str:
    with pytest.raises(MultigrainError) as caught:
        unpack_tar(archive, path, max_bytes=max_bytes)
    assert caught.value.kind is ErrorKind.INVALID_FIELD
    assert caught.value.violations[0].field == "chunk"
    return caught.value.message


def test_a_bundle_is_unchanged_after_packing_and_unpacking(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path / "a")
    archive = packed(tmp_path / "a")
    unpack_tar(archive, tmp_path / "b", max_bytes=LIMIT)
    assert read(tmp_path / "b", verify=True) == manifest
    for path in (tmp_path / "b").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()
    assert packed(tmp_path / "b").getvalue() == archive.getvalue()


def test_only_files_of_the_manifest_are_packed(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a")
    (tmp_path / "a" / "secret.txt").write_text("not for you")
    with tarfile.open(fileobj=packed(tmp_path / "a")) as tar:
        assert tar.getnames() == ["model.json", "model.onnx", "weights.safetensors"]


def test_the_folder_entry_of_an_archive_is_ignored(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.add(tmp_path / "a", arcname=".")
    file.seek(0)
    unpack_tar(file, tmp_path / "b", max_bytes=LIMIT)
    assert read(tmp_path / "b", verify=True).version == 3


def tar_of(folder: Path, *names: str, format: int = tarfile.PAX_FORMAT) -> io.BytesIO:
    """As ``tar -C folder -c names`` packs it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for name in names:
            tar.add(folder / name, arcname=name)
    file.seek(0)
    return file


LITTER = (
    ".DS_Store", "._model.json", "._weights.safetensors", ".git/HEAD", "__MACOSX/._model.json",
    "Thumbs.db", "desktop.ini", "@eaDir/model.json@SynoEAStream", ".hidden",
)  # fmt: skip


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("top", [".", "m", "./m", "outer/m", "m" * 90, "m" * 150])
def test_a_folder_is_packed_in_any_way_and_with_what_systems_put_there(
    tmp_path: Path, top: str, format: int
) -> None:
    if len(top) > 100 and format == tarfile.USTAR_FORMAT:
        top = "/".join([top[:75], top[:75]])
    folder = tmp_path / "in" / top
    (tmp_path / "in").mkdir()
    manifest = write_bundle(folder) if top != "." else write_bundle_in(folder)
    for name in LITTER:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"litter")
    (tmp_path / "in" / "._m").write_bytes(b"beside the folder")
    archive = tar_of(tmp_path / "in", *(["."] if top == "." else [f"{top}", "._m"]), format=format)
    unpack_tar(archive, tmp_path / "b", max_bytes=LIMIT)
    assert read(tmp_path / "b", verify=True) == manifest
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"model.json", *manifest.files}


def write_bundle_in(folder: Path) -> BundleManifest:
    manifest = write_bundle(folder / "new")
    for path in (folder / "new").iterdir():
        path.rename(folder / path.name)
    (folder / "new").rmdir()
    return manifest


def test_files_beside_those_of_the_manifest_are_unpacked(tmp_path: Path) -> None:
    """Whoever reads the manifest decides about them."""
    write_bundle(tmp_path / "a")
    (tmp_path / "a" / "README.md").write_text("about")
    unpack_tar(tar_of(tmp_path, "a"), tmp_path / "b", max_bytes=LIMIT)
    assert (tmp_path / "b" / "README.md").exists()


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        ("other/file", "not a plain file name in 'm', the folder with model.json"),
        ("file", "not a plain file name in 'm'"),
        ("m/sub/file", "'m/sub/file' is not a plain file name in 'm'"),
        ("m/../file", "'m/../file' is not a plain file name"),
        ("/m/file", "not a plain file name"),
        ("n/model.json", "not a plain file name in 'm'"),
    ],
)
def test_files_outside_the_folder_of_the_manifest_are_refused(
    tmp_path: Path, odd: str, why: str
) -> None:
    archive = archive_of(member("m/model.json", b"{}"), member(odd))
    message = refusal(archive, tmp_path / "b")
    assert why in message
    assert not message.startswith("chunk")


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.DIRTYPE, "a folder"),
        (tarfile.CHRTYPE, "a special file"),
        (tarfile.FIFOTYPE, "a special file"),
    ],
)
def test_odd_entries_are_refused_by_kind(tmp_path: Path, kind: bytes, what: str) -> None:
    odd = member("m/odd", b"", type=kind, linkname="model.json")
    archive = archive_of(member("m/model.json", b"{}"), odd)
    assert f"'m/odd' is {what} and not a regular file" in refusal(archive, tmp_path / "b")


def test_a_link_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    link = member("m", b"", type=tarfile.SYMTYPE, linkname="/etc")
    archive = archive_of(link, member("m/model.json", b"{}"))
    assert "'m' is a link" in refusal(archive, tmp_path / "b")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_many_megabytes_is_refused(tmp_path: Path, kind: bytes) -> None:
    """tarfile would read it into memory at once."""
    info, _ = member("x", b"", type=kind)
    info.size = 64 << 20
    header = info.tobuf(tarfile.USTAR_FORMAT)
    sizes = []

    class Recorded(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            sizes.append(size)
            return super().read(size)

    refusal(Recorded(header + bytes(1 << 20)), tmp_path / "b")
    assert all(size is not None and 0 <= size <= 1 << 20 for size in sizes)


def test_many_hidden_entries_are_refused(tmp_path: Path) -> None:
    archive = archive_of(*(member(f".{number}") for number in range(600)))
    assert "more than 512 entries" in refusal(archive, tmp_path / "b")


def damage_missing(path: Path) -> None:
    (path / "model.onnx").unlink()


def damage_changed(path: Path) -> None:
    (path / "model.onnx").write_bytes(b"grapH")


def damage_longer(path: Path) -> None:
    (path / "model.onnx").write_bytes(b"graph and more")


def damage_link(path: Path) -> None:
    (path / "model.onnx").unlink()
    (path / "model.onnx").symlink_to("/etc/passwd")


def damage_unlisted(path: Path) -> None:
    text = (path / "model.json").read_text()
    (path / "model.json").write_text(text.replace('"onnx": "model.onnx"', '"onnx": "other.onnx"'))


def damage_climbing(path: Path) -> None:
    text = (path / "model.json").read_text()
    text = text.replace('"weights.safetensors": {', '"../weights.safetensors": {')
    (path / "model.json").write_text(text)


@pytest.mark.parametrize(
    "damage",
    [damage_missing, damage_changed, damage_longer, damage_link, damage_unlisted, damage_climbing],
)
def test_damage_is_detected_by_verification(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    write_bundle(tmp_path / "a")
    read(tmp_path / "a", verify=True)
    damage(tmp_path / "a")
    with pytest.raises(MultigrainError) as caught:
        read(tmp_path / "a", verify=True)
    assert caught.value.kind is ErrorKind.CHECKPOINT


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no model.json"),
        ("{", "content"),
        ('{"name": "m"}', "version"),
        ('{"a": "\ud800"}', "content|read"),
    ],
)
def test_an_invalid_manifest_is_explained(tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "model.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(MultigrainError, match=says) as caught:
        read(tmp_path)
    assert caught.value.kind is ErrorKind.CHECKPOINT


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/tmp/evil",
        "sub/file",
        "..",
        "a\\b",
        "./../evil",
        "x/../../evil",
        ".x/../../evil",
        "../.evil",
        "__MACOSX/../../evil",
    ],
)
def test_names_with_paths_are_refused(tmp_path: Path, name: str) -> None:
    target = tmp_path / "in" / "folder"
    assert "not a plain file name" in refusal(archive_of(member(name)), target)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("top", ["/b", "/home/u/.cache/b", "/__MACOSX/b", "//b"])
def test_an_archive_of_absolute_paths_says_so(tmp_path: Path, top: str) -> None:
    """Of ``tar -P``."""
    archive = archive_of(
        member(f"{top}/", b"", type=tarfile.DIRTYPE), member(f"{top}/model.json", b"{}")
    )
    message = refusal(archive, tmp_path / "in")
    assert f"'{top}" in message
    assert "an absolute path; pack the bundle's folder with relative ones (tar -C " in message


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.REGTYPE])
@pytest.mark.parametrize("name", ["b\\model.json", "C:\\b\\model.json", "b\\"])
def test_an_archive_with_backslashes_says_so(tmp_path: Path, kind: bytes, name: str) -> None:
    message = refusal(archive_of(member(name, b"", type=kind)), tmp_path / "in")
    assert f"{name!r} is not a plain file name: it has a backslash" in message


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
             tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE, tarfile.CONTTYPE]
)  # fmt: skip
def test_only_regular_files_are_unpacked(tmp_path: Path, kind: bytes) -> None:
    bad = member("model.onnx", b"", type=kind, linkname="/etc/passwd")
    assert "not a regular file" in refusal(archive_of(bad), tmp_path / "b")
    assert not os.path.lexists(tmp_path / "b" / "model.onnx")


def test_a_file_is_not_written_through_an_existing_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "model.json").symlink_to(outside)
    refusal(archive_of(member("model.json", b"yours")), tmp_path / "b")
    assert outside.read_text() == "mine"


def test_a_pax_sparse_file_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info, content = member("model.json", b"1\n0\n1\n" + b"\0" * 506 + b"x" * 512)
        info.pax_headers = {
            "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "model.json",
            "GNU.sparse.realsize": str(1 << 40),
        }  # fmt: skip
        tar.addfile(info, io.BytesIO(content))
    file.seek(0)
    assert "not a regular file" in refusal(file, tmp_path / "b")


def test_the_total_size_is_limited_before_anything_is_written(tmp_path: Path) -> None:
    archive = archive_of(member("model.json", b"a" * 60), member("b", b"b" * 60))
    assert "larger than 100" in refusal(archive, tmp_path / "b", max_bytes=100)
    assert not (tmp_path / "b" / "b").exists()


def test_an_archive_shorter_than_it_declares_is_refused(tmp_path: Path) -> None:
    archive = archive_of(member("model.json", b"a" * 5000))
    assert refusal(io.BytesIO(archive.getvalue()[:2048]), tmp_path / "b")


def test_duplicate_names_and_too_many_files_are_refused(tmp_path: Path) -> None:
    twice = archive_of(member("model.json"), member("./model.json"))
    assert "twice" in refusal(twice, tmp_path / "a")
    crowd = archive_of(*(member(f"f{number}") for number in range(100)))
    assert "more than 64" in refusal(crowd, tmp_path / "b")


@pytest.mark.parametrize("content", [b"", b"no archive at all" * 100, b"\x1f\x8b\x08" + bytes(600)])
def test_a_file_that_is_not_an_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    assert refusal(io.BytesIO(content), tmp_path / "b")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        tar.add(tmp_path / "a" / "model.json", arcname="model.json")
    file.seek(0)
    assert "it is a gzip file: unpack it (gunzip)" in refusal(file, tmp_path / "b")


def test_an_archive_without_manifest_is_refused(tmp_path: Path) -> None:
    assert "no model.json" in refusal(archive_of(member("weights.safetensors")), tmp_path / "b")

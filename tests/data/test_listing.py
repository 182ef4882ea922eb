"""The rule by which folders are listed, for training, evaluation, export and the client."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from unittest.mock import Mock

import pytest

from multigrain.data.file_names import SYSTEM_NAMES
from multigrain.data.listing import Lister, Listing, Reason, watched
from tests.data.test_image_folder import touch
from tests.unprivileged import unprivileged

HEADERS = {
    "jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    "png": b"\x89PNG\r\n\x1a\n",
    "webp": b"RIFF\x24\x00\x00\x00WEBPVP8 ",
    "bmp": b"BM\x36\x03\x00\x00\x00\x00\x00\x00\x36\x00\x00\x00\x28\x00\x00\x00",
    "gif": b"GIF89a",
    "tiff, little-endian": b"II*\x00\x08\x00\x00\x00",
    "avif": b"\x00\x00\x00\x20ftypavif\x00\x00\x00\x00avifmif1",
    "tiff, big-endian": b"MM\x00*\x00\x00\x00\x08",
}


def listed(root: Path, *, optional: bool = False) -> Listing:
    return Lister(root, optional=optional).images()


@pytest.mark.parametrize("name", sorted(SYSTEM_NAMES))
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_folders_and_files_of_systems_are_passed_over(
    tmp_path: Path, name: str, case: Callable[[str], str]
) -> None:
    touch(tmp_path / "folders", "a/1.png", f"{case(name)}/x.png", f"a/{case(name)}/1.png/y.jpg")
    touch(tmp_path / "files", "a/1.png", f"a/{case(name)}")
    classes, beside = Lister(tmp_path / "folders", optional=False).classes()
    assert [(name, found.paths) for name, found in classes] == [("a", ["a/1.png"])]
    assert beside.count(Reason.SYSTEM) == classes[0][1].left_out.count(Reason.SYSTEM) == 1
    found = listed(tmp_path / "files")
    assert found.paths == ["a/1.png"]
    assert found.left_out.count(Reason.SYSTEM) == 1


HIDDEN = (
    *(".DS_Store", "._1.png", ".thumbnails", ".ipynb_checkpoints", ".git", ".snapshot", ".x.jpg"),
    *(".Trash-1000", ".@__thumb", "..2026_11_30", "..data"),
)


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_files_and_folders_are_passed_over_and_counted(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "a/1.png", f"a/{name}", f"{name}/2.png")
    found = listed(tmp_path)
    assert found.paths == ["a/1.png"]
    assert found.left_out.by_reason == {"hidden": 2}
    assert not found.left_out.suspect


def test_a_volume_of_kubernetes_lists_each_image_once(tmp_path: Path) -> None:
    """Its files are links into a hidden folder with the time in its name."""
    touch(tmp_path, "..2026_11_30/1.png")
    (tmp_path / "..data").symlink_to("..2026_11_30")
    (tmp_path / "1.png").symlink_to("..data/1.png")
    assert listed(tmp_path).paths == ["1.png"]


def test_lost_found_is_passed_over_by_a_user_who_may_not_read_it(open_path: Path) -> None:
    touch(open_path, "0/1.png", "lost+found/x")
    (open_path / "lost+found").chmod(0)
    with unprivileged():
        assert listed(open_path).paths == ["0/1.png"]
        assert [name for name, _ in Lister(open_path, optional=False).classes()[0]] == ["0"]


@pytest.mark.parametrize(
    "name", ["1.jpg", "1.JFIF", "1.Jpeg", "1.jpe", "1.AVIF", "1.dib", "1.tif", "a.b.PNG"]
)
def test_extensions_are_compared_without_case(tmp_path: Path, name: str) -> None:
    assert listed(touch(tmp_path, name)).paths == [name]


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_a_file_without_extension_is_listed_by_its_first_bytes(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "9f86d081884c7d65").write_bytes(content)
    (tmp_path / "9f86d081884c7d65.txt").write_bytes(content)
    found = listed(tmp_path)
    assert found.paths == ["9f86d081884c7d65"]
    assert found.left_out.describe() == "1 file of other kinds (1 .txt)"


@pytest.mark.parametrize(
    "content",
    [b"", b"BMW: a car of Bavaria", b"RIFF\x24\x00\x00\x00WAVEfmt ", b"II", b"#!/bin/sh", b"%PDF"],
)
def test_another_file_without_extension_is_counted(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "README").write_bytes(content)
    found = listed(tmp_path)
    assert found.paths == []
    assert found.left_out.describe() == "1 file without extension that is no image (README)"


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "a/2.heic", "a/3.HEIC", "a/4.jp2", "a/n.txt", "a/m.txt", "a/x.json")
    touch(tmp_path, "Thumbs.db", ".hidden", "a/@eaDir/t.jpg")
    (tmp_path / "a/gone.png").symlink_to("nowhere.png")
    (tmp_path / "a/up").symlink_to("..")
    os.mkfifo(tmp_path / "a/pipe.png")
    found = listed(tmp_path)
    assert found.paths == ["a/1.png"]
    assert found.left_out.by_reason == {
        "unsupported": 3,
        "broken_link": 1,
        "loop": 1,
        "special": 1,
        "other": 3,
        "system": 2,
        "hidden": 1,
    }
    assert found.left_out.suspect
    text = found.left_out.describe()
    assert "2 .heic files (to read them: pip install 'multigrain[heif]')" in text
    assert "1 .jp2 file (JPEG 2000 is not read: save as JPEG or PNG)" in text
    assert "1 link that cannot be followed (a/gone.png)" in text
    assert "1 link to a folder that contains the link (a/up)" in text
    assert "3 files of other kinds (2 .txt, 1 .json)" in text
    assert "2 system files or folders (1 @eaDir, 1 Thumbs.db)" in text


def test_optional_formats_are_listed_where_they_can_be_read(tmp_path: Path) -> None:
    touch(tmp_path, "1.heic", "2.HEIF")
    assert listed(tmp_path, optional=True).paths == ["1.heic", "2.HEIF"]
    assert listed(tmp_path).paths == []


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    """A class that is a link, a folder of a class that is a link, a file that is a link."""
    touch(tmp_path, "store/1.png", "data/0/1.png", "data/3/own.png")
    (tmp_path / "data/3/part2").symlink_to(tmp_path / "store")
    (tmp_path / "data/4").symlink_to("../store")
    (tmp_path / "data/0/2.png").symlink_to("../../store/1.png")
    classes, _ = Lister(tmp_path / "data", optional=False).classes()
    assert [found.paths for _, found in classes] == [
        ["0/1.png", "0/2.png"],
        ["3/own.png", "3/part2/1.png"],
        ["4/1.png"],
    ]
    assert listed(tmp_path / "data").paths == [
        "0/1.png",
        "0/2.png",
        "3/own.png",
        "3/part2/1.png",
    ]


@pytest.mark.parametrize("target", [".", "..", "../..", "../../..", "/"])
def test_a_link_to_a_folder_above_it_is_left_out(tmp_path: Path, target: str) -> None:
    touch(tmp_path, "data/a/b/1.png")
    (tmp_path / "data/a/b/up").symlink_to(target)
    found = listed(tmp_path / "data")
    assert found.paths == ["a/b/1.png"]
    assert found.left_out.by_reason == {"loop": 1}


def test_a_class_that_is_a_link_to_the_dataset_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png")
    (tmp_path / "self").symlink_to(".")
    classes, beside = Lister(tmp_path, optional=False).classes()
    assert [name for name, _ in classes] == ["a"]
    assert beside.by_reason == {"loop": 1}


def test_folders_that_link_to_each_other_are_listed_once(tmp_path: Path) -> None:
    """In one listing the ordinary folder wins; each class has its own."""
    touch(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a/b").symlink_to("../b")
    (tmp_path / "b/a").symlink_to("../a")
    found = listed(tmp_path)
    assert found.paths == ["a/1.png", "b/2.png"]
    assert found.left_out.by_reason == {"listed_already": 2}
    assert "2 links to a folder that is listed already (a/b, b/a)" in found.left_out.describe()
    assert not found.left_out.suspect
    classes, _ = Lister(tmp_path, optional=False).classes()
    assert [found.paths for _, found in classes] == [
        ["a/1.png", "a/b/2.png"],
        ["b/2.png", "b/a/1.png"],
    ]


@pytest.mark.parametrize("inside", [True, False], ids=["below the root", "beside the root"])
def test_levels_of_two_links_each_are_listed_once(tmp_path: Path, inside: bool) -> None:
    """By paths there are 2**40 folders."""
    levels = 40
    stage = tmp_path / "data" if inside else tmp_path
    for number in range(levels):
        touch(stage, f"s{number:02}/{number}.png")
        for name in "ab":
            if number + 1 < levels:
                (stage / f"s{number:02}" / name).symlink_to(f"../s{number + 1:02}")
    touch(tmp_path, "data/own.png")
    (tmp_path / "data" / "z").symlink_to(stage / "s00")
    found = listed(tmp_path / "data")
    if inside:
        ordinary = [f"s{number:02}/{number}.png" for number in range(levels)]
        assert found.paths == ["own.png", *ordinary]
        assert found.left_out.by_reason == {"listed_already": 2 * (levels - 1) + 1}
    else:
        linked = ["z/" + "a/" * number + f"{number}.png" for number in range(levels)]
        assert found.paths == sorted(["own.png", *linked])
        assert found.left_out.by_reason == {"listed_already": levels - 1}


def reference(root: Path) -> set[str]:
    """Real paths of the images that a walk along all links reaches, each folder once."""
    seen: set[str] = set()
    images: set[str] = set()
    pending = [os.path.realpath(root)]
    while pending:
        folder = pending.pop()
        if folder in seen:
            continue
        seen.add(folder)
        for name in os.listdir(folder):
            path = os.path.realpath(os.path.join(folder, name))
            if os.path.isdir(path):
                pending.append(path)
            else:
                images.add(path)
    return images


@pytest.mark.parametrize("seed", range(12))
def test_random_links_lose_no_image_and_list_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Whatever order the disk has. Links to folders that contain the root are not made."""
    random = Random(seed)
    folders = ["data"]
    for number in range(12):
        folders.append(f"{random.choice(folders)}/f{number}")
        touch(tmp_path, f"{folders[-1]}/{number}.png")
    stores = [f"store/s{number}" for number in range(6)] + ["store/s0/deep"]
    for number, store in enumerate(stores):
        touch(tmp_path, f"{store}/x{number}.png")
    for number in range(30):
        link = tmp_path / random.choice(folders + stores) / f"l{random.randrange(99)}-{number}"
        link.symlink_to(tmp_path / random.choice(folders[1:] + stores))
    found = listed(tmp_path / "data")
    real = [os.path.realpath(tmp_path / "data" / path) for path in found.paths]
    assert len(set(real)) == len(real)
    assert set(real) == reference(tmp_path / "data")
    ordinary = {str(path.relative_to(tmp_path / "data")) for path in
                (tmp_path / "data").rglob("*.png")}  # fmt: skip
    assert ordinary <= set(found.paths)
    monkeypatch.setattr(os, "scandir", Reversed)
    again = listed(tmp_path / "data")
    assert again.paths == found.paths
    assert again.left_out.counts == found.left_out.counts


class Reversed:
    """``os.scandir`` in another order."""

    def __init__(self, path: str) -> None:
        with REAL_SCANDIR(path) as entries:
            self._entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

    def __enter__(self) -> Iterator[os.DirEntry[str]]:
        return iter(self._entries)

    def __exit__(self, *exception: object) -> None:
        pass


REAL_SCANDIR = os.scandir


def test_ordinary_folders_are_not_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, *(f"{number}/{number}/1.png" for number in range(20)))
    calls = list[str]()
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path: calls.append(path) or real(path))
    assert len(Lister(tmp_path, optional=False).classes()[0]) == 20
    assert calls == [str(tmp_path)]


def test_a_watched_listing_ends_between_two_folders(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/2.png", "c/3.png")
    calls = list[None]()

    def proceed() -> None:
        calls.append(None)
        if len(calls) > 2:
            raise TimeoutError

    with watched(proceed), pytest.raises(TimeoutError):
        listed(tmp_path)
    assert len(calls) == 3
    assert len(listed(tmp_path).paths) == 3
    assert len(calls) == 3


@pytest.mark.parametrize(
    "name",
    ["@GMT-2026.11.30-12.00.00", "found.001", "FOUND.042", "RECYCLED", "cat Previews.lrdata"],
)
def test_folders_of_systems_with_a_pattern_are_passed_over(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "a/1.png", f"{name}/1.png")
    assert listed(tmp_path).left_out.by_reason == {"system": 1}


@pytest.mark.parametrize("name", ["@home", "#1", "recycled", "Recycled", "found.dog", "lrdata"])
def test_names_that_resemble_those_of_systems_are_classes(tmp_path: Path, name: str) -> None:
    touch(tmp_path, f"{name}/1.png")
    assert listed(tmp_path).paths == [f"{name}/1.png"]


UNKNOWN = (
    *("1.bin", "1.tmp", "1.1", "1.png~", "1.png ", "1.png.", "1.jpg?v=3", "v1.5", "1.jpg:large"),
    *("1.jpg_original", "1.JPG!d", "photo.2026-11-30", "1.jpeg_", "1.image", "1.bak"),
)


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_file_with_an_unknown_extension_is_listed_by_its_first_bytes(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(HEADERS["jpeg"])
    assert listed(tmp_path).paths == [name]
    (tmp_path / name).write_bytes(b"something else")
    assert listed(tmp_path).left_out.by_reason == {"other": 1}


@pytest.mark.parametrize("suffix", ["~", "_original", ".bak", ".orig", ".old"])
def test_the_backup_of_a_listed_image_is_not_listed(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "1.jpg").write_bytes(HEADERS["jpeg"])
    (tmp_path / f"1.jpg{suffix}").write_bytes(HEADERS["jpeg"])
    found = listed(tmp_path)
    assert found.paths == ["1.jpg"]
    assert found.left_out.by_reason == {"other": 1}


@pytest.mark.parametrize(
    "extension",
    [
        *(".txt", ".json", ".csv", ".xml", ".md", ".py", ".html", ".zip", ".tar", ".gz", ".db"),
        *(".log", ".yaml", ".npy", ".npz", ".pkl", ".mp4", ".crdownload", ".part"),
    ],
)
def test_files_of_known_other_kinds_are_not_opened(tmp_path: Path, extension: str) -> None:
    (tmp_path / f"1{extension}").write_bytes(HEADERS["jpeg"])
    with watched(calls := Mock()):
        found = listed(tmp_path)
    assert found.left_out.describe() == f"1 file of other kinds (1 {extension})"
    assert calls.call_count == 1  # the folder


@pytest.mark.parametrize("extension", [".mpo", ".jps", ".jpg_large", ".jpeg_large", ".pjp"])
def test_other_extensions_of_jpeg_are_listed(tmp_path: Path, extension: str) -> None:
    assert listed(touch(tmp_path, f"1{extension.upper()}")).paths == [f"1{extension.upper()}"]


def test_few_files_of_an_extension_without_images_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of their names, so that each host lists the same."""
    monkeypatch.setattr("multigrain.data.listing._TRIED", 3)
    touch(tmp_path, *(f"{number}.none" for number in range(9)))
    touch(tmp_path, *(f"{number}.some" for number in range(9)), *map(str, range(9)))
    for name in ("8.none", "2.some", "8.some", "8"):
        (tmp_path / name).write_bytes(HEADERS["png"])
    with watched(calls := Mock()):
        found = listed(tmp_path)
    assert found.paths == ["2.some", "8", "8.some"]
    assert found.left_out.by_reason == {"no_extension": 8, "other": 9 + 7}
    assert calls.call_count == 1 + 3 + 9 + 9


@pytest.mark.parametrize("name", ["9f86d081", "1.bin"])
def test_a_file_that_cannot_be_opened_may_be_an_image(open_path: Path, name: str) -> None:
    touch(open_path, "1.png", name)
    (open_path / name).chmod(0)
    with unprivileged():
        found = listed(open_path)
    assert found.paths == ["1.png"]
    assert found.left_out.describe() == (f"1 file that cannot be read ({name}: Permission denied)")
    assert found.left_out.suspect


def test_heic_without_extension_is_listed_where_it_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "IMG_1").write_bytes(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00heicmif1")
    assert listed(tmp_path, optional=True).paths == ["IMG_1"]
    assert listed(tmp_path).left_out.by_reason == {"unsupported": 1}


def test_a_folder_may_be_a_link_itself(tmp_path: Path) -> None:
    touch(tmp_path, "real/a/1.png")
    (tmp_path / "link").symlink_to("real")
    assert listed(tmp_path / "link").paths == ["a/1.png"]


def test_a_link_to_itself_and_a_link_to_a_socket_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "ring.png").symlink_to("ring.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        (tmp_path / "s.png").symlink_to("s")
        found = listed(tmp_path)
    assert found.paths == ["a.png"]
    assert found.left_out.by_reason == {"broken_link": 1, "special": 2}


def test_names_that_are_not_text_are_listed_and_escaped_where_they_are_named(
    tmp_path: Path,
) -> None:
    latin = os.fsdecode(b"latin\xe9.png")
    touch(tmp_path, latin, os.fsdecode(b"\x1b[31m\xe9"))
    found = listed(tmp_path)
    assert found.paths == [latin]
    assert (tmp_path / latin).exists()
    found.left_out.describe().encode()
    assert r"(\x1b[31m\xe9)" in found.left_out.describe()


def test_many_levels_of_folders_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = "/".join(["d"] * 1500) + "/1.png"
    monkeypatch.chdir(tmp_path)
    try:
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
        Path("1.png").touch()
        os.chdir(tmp_path)
        assert listed(tmp_path).paths == [deep]
    finally:
        # Python 3.11 removes folders by recursion: pytest would fail when it removes old ones.
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)

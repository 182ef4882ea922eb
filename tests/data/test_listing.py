"""The rule by which folders are listed, for training, evaluation, export and the client."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from multigrain.data.listing import SYSTEM_NAMES, Lister, Listing, Reason
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
        "4/1.png",
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


def test_folders_that_link_to_each_other_are_listed_once_along_a_path(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a/b").symlink_to("../b")
    (tmp_path / "b/a").symlink_to("../a")
    assert listed(tmp_path).paths == ["a/1.png", "a/b/2.png", "b/2.png", "b/a/1.png"]


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

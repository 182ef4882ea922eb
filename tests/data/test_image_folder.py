"""Listing a dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from multigrain.data.image_folder import scan, scan_images
from multigrain.errors import ErrorKind, MultigrainError
from tests.unprivileged import unprivileged


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_classes_and_images_are_sorted_and_numbered(tmp_path: Path) -> None:
    touch(tmp_path, "zebra/2.png", "zebra/1.JPG", "ape/x.webp", "10/deep/er/a.jpeg", "10/z.tif")
    folder = scan(tmp_path)
    assert folder.classes == ("10", "ape", "zebra")
    assert folder.paths == [
        "10/deep/er/a.jpeg",
        "10/z.tif",
        "ape/x.webp",
        "zebra/1.JPG",
        "zebra/2.png",
    ]
    assert folder.labels.tolist() == [0, 0, 1, 2, 2]
    assert folder.labels.dtype == np.int32
    assert len(folder) == 5


def test_other_and_hidden_files_are_ignored(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a/1.png",
        "a/notes.txt",
        "a/.hidden.png",
        ".cache/x.png",
        "readme.png",
        "a/.thumbs/1.png",
    )
    folder = scan(tmp_path)
    assert folder.classes == ("a",)
    assert folder.paths == ["a/1.png"]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ((), "no class folders"),
        (("1.png", "2.png"), "2 images are directly"),
        (("a/notes.txt",), "has no images"),
        (("a/1.png", "b/notes.txt"), "in the classes 'b'"),
    ],
)
def test_a_folder_without_a_datasets_layout_is_refused(
    tmp_path: Path, names: tuple[str, ...], says: str
) -> None:
    with pytest.raises(MultigrainError, match=says) as caught:
        scan(touch(tmp_path, *names))
    assert caught.value.kind is ErrorKind.DATASET


def test_a_missing_path_or_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MultigrainError, match="does not exist") as caught:
        scan(tmp_path / "nowhere")
    assert caught.value.kind is ErrorKind.DATASET
    with pytest.raises(MultigrainError, match="is not a folder"):
        scan(touch(tmp_path, "file") / "file")


def test_a_class_whose_name_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "dog/1.png", b"caf\xe9/1.png".decode("utf-8", "surrogateescape"))
    with pytest.raises(MultigrainError, match=r"caf\\+xe9.* rename") as caught:
        scan(tmp_path)
    assert caught.value.kind is ErrorKind.DATASET
    caught.value.message.encode()


def test_relabeling_uses_the_models_class_indices(tmp_path: Path) -> None:
    folder = scan(touch(tmp_path, "b/1.png", "c/1.png"))
    renamed = folder.relabeled(("a", "b", "c", "d"))
    assert renamed.labels.tolist() == [1, 2]
    assert renamed.classes == ("a", "b", "c", "d")
    with pytest.raises(MultigrainError, match="'c'") as caught:
        folder.relabeled(("a", "b"))
    assert caught.value.kind is ErrorKind.DATASET


def test_a_deleted_file_is_an_unreadable_image(tmp_path: Path) -> None:
    folder = scan(touch(tmp_path, "a/1.png"))
    (tmp_path / "a/1.png").unlink()
    with pytest.raises(MultigrainError) as caught:
        folder.read(0)
    assert caught.value.kind is ErrorKind.IMAGE_UNREADABLE


@pytest.mark.parametrize("closed", ["b", "b/deep", "."])
def test_a_folder_without_permission_is_not_reported_as_empty(open_path: Path, closed: str) -> None:
    touch(open_path, "a/1.png", "b/2.png", "b/deep/3.png")
    (open_path / closed).chmod(0)
    for look in (scan, scan_images):
        with unprivileged() as uid, pytest.raises(MultigrainError) as caught:
            look(open_path)
        assert caught.value.kind is ErrorKind.DATASET
        assert caught.value.message == (
            f"the folder {open_path / closed} cannot be listed: Permission denied; let uid {uid} "
            "list and read it"
        )

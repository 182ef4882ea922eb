"""Listing a dataset."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from multigrain.data.fingerprint import fingerprint
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


def message_of(root: Path) -> str:
    with pytest.raises(MultigrainError) as caught:
        scan(root)
    assert caught.value.kind is ErrorKind.DATASET
    return caught.value.message


def test_folders_of_systems_are_no_classes(tmp_path: Path) -> None:
    touch(
        tmp_path, "0/1.png", "3/1.png", "3/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/0/1.png"
    )
    touch(tmp_path, "lost+found/x", "#recycle/1.png")
    folder = scan(tmp_path)
    assert folder.classes == ("0", "3")
    assert folder.paths == ["0/1.png", "3/1.png"]
    assert folder.left_out.describe() == (
        "4 system files or folders (1 #recycle, 1 @eaDir, 1 __MACOSX, 1 lost+found)"
    )


def test_a_class_without_images_is_refused_with_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multigrain.data.image_folder.find_spec", lambda _name: None)
    touch(tmp_path, "cat/1.png", *(f"dog/{number}.heic" for number in range(40)))
    text = message_of(tmp_path)
    assert "in the classes 'dog' (only 40 .heic files (" in text
    assert "multigrain[heif]" in text


@pytest.mark.parametrize(
    ("names", "meant"),
    [
        (("train/0/1.png", "train/3/1.png", "val/0/1.png"), "train"),
        (("TRAIN/0/1.png", "Validation/0/1.png", "Test/0/1.png"), "TRAIN"),
        (("test/0/1.png", "val/0/1.png"), "test"),
        (("train/0/1.png",), "train"),
        (("test/1.png", "train/n01440764/1.JPEG", "val/2.png"), "train"),
        (("train2017/0/1.png", "val2017/0/1.png"), "train2017"),
        (("train/0/1.png", "val/0/1.png", "annotations/a.xml"), "train"),
        # An image beside the classes of one part.
        (("train/a/1.png", "train/stray.png", "val/a/1.png"), "train"),
        (("train/1.png", "val/a/1.png"), "train"),
        # More than two parts, as STL-10 has.
        (("train/a/1.png", "val/a/1.png", "unlabeled/1.png"), "train"),
        (("train/a/1.png", "test/1.png", "unlabeled/1.png"), "train"),
        (("extra/a/1.png", "train/a/1.png", "val/a/1.png"), "train"),
        (("train/a/1.png", "trainval/a/1.png", "test/a/1.png"), "train"),
        # Other words in the names.
        (("test_set/a/1.png", "training_set/a/1.png"), "training_set"),
        (("seg_pred/1.png", "seg_test/a/1.png", "seg_train/a/1.png"), "seg_train"),
        (("imgs_train/a/1.png", "imgs_val/a/1.png"), "imgs_train"),
        (("birds-test/a/1.png", "birds-train/a/1.png"), "birds-train"),
        (("Training Data/a/1.png", "Validation Data/a/1.png"), "Training Data"),
        (("testA/a/1.png", "trainA/a/1.png", "trainB/a/1.png"), "trainA"),
        (("split1.test/a/1.png", "split1.train/a/1.png"), "split1.train"),
        (("dev/a/1.png", "train/a/1.png", "eval/a/1.png"), "train"),
    ],
)
def test_the_folder_above_train_and_val_is_refused(
    tmp_path: Path, names: tuple[str, ...], meant: str
) -> None:
    assert f"did you mean {tmp_path}/{meant}?" in message_of(touch(tmp_path, *names))


def test_classes_with_names_of_parts_are_accepted_with_images_of_their_own(tmp_path: Path) -> None:
    folder = scan(touch(tmp_path / "a", "test/1.png", "train/2.png"))
    assert folder.classes == ("test", "train")
    assert "named like the parts of a dataset" in folder.warning
    folder = scan(touch(tmp_path / "b", "bus/red/1.png", "train/red/2.png"))
    assert folder.classes == ("bus", "train")


@pytest.mark.parametrize(
    "names",
    [
        ("train/1.png", "test/1.png", "plane/1.png"),
        ("bullet_train/red/1.png", "test_tube/red/1.png", "bus/red/1.png"),
        ("steam train/a/1.png", "crash test/a/1.png"),
        ("train/1.png", "train/old/2.png", "bus/1.png", "test/3.png"),
        ("train/1.png", "train/old/2.png", "test/1.png", "test/old/2.png"),
        ("valid/1.png", "invalid/1.png"),
        ("trainer/a/1.png", "tester/a/1.png"),
        ("cheval/a/1.png", "\u00e9val/a/1.png", "strain/a/1.png"),
    ],
)
def test_classes_whose_names_have_words_of_parts_are_accepted(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    folder = scan(touch(tmp_path, *names))
    assert set(folder.classes) == {name.split("/")[0] for name in names}


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("fold0/a/1.png", "fold1/a/1.png"), r"parts of a dataset.*give .*/fold0$"),
        (("split 1/a/1.png", "split 2/a/1.png"), r"parts of a dataset.*give .*/split 1$"),
        (("train1/a/1.png", "train2/a/1.png"), r"parts of a dataset.*give .*/train1$"),
        (("ape/1.png", "bee/1.png", "unlabeled/x/1.png"), r"'unlabeled' are named like the parts"),
        (
            ("a/1.png", "train/x/1.png"),
            r"'train' are named like .*\('train': 'x'\), give .*/train$",
        ),
        (("train/1.png", "test/1.png"), r"'test', 'train' are named like the parts"),
        (("train/1.png", "bus/1.png"), "^$"),
    ],
)
def test_other_folders_named_like_parts_are_warned_of(
    tmp_path: Path, names: tuple[str, ...], says: str
) -> None:
    assert re.search(says, scan(touch(tmp_path, *names)).warning)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("birds/ape/1.png", "birds/bee/1.png"), r"'birds' holds folders only \('ape', 'bee'\)"),
        (("x/val/0/1.png", "x/train/0/2.png"), r"'x' holds the parts .*/x/train\?$"),
        (("a/b/1.png", "c/d/1.png"), r"all 2 class folders hold folders only \('a': 'b'\)"),
        (("a/1.png", "c/d/1.png"), "^$"),
        (("a/1.png", "a/d/1.png"), "^$"),
    ],
)
def test_classes_that_hold_folders_only_are_warned_of(
    tmp_path: Path, names: tuple[str, ...], says: str
) -> None:
    folder = scan(touch(tmp_path, *names))
    assert re.search(says, folder.warning)
    if folder.warning:
        with pytest.raises(MultigrainError, match=r"holds? (folders only|the parts)"):
            folder.relabeled(("none of them",))


def test_images_beside_the_classes_are_counted(tmp_path: Path) -> None:
    folder = scan(touch(tmp_path, "a/1.png", "2.png", "classes.csv"))
    assert folder.left_out.by_reason == {"direct": 1, "other": 1}
    assert folder.left_out.suspect


COMPOSED = "caf\u00e9"
DECOMPOSED = "cafe\u0301"


@pytest.mark.parametrize(("trained", "given"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_class_names_are_compared_in_one_unicode_form(
    tmp_path: Path, trained: str, given: str
) -> None:
    folder = scan(touch(tmp_path, f"{given}/1.png", "dog/1.png"))
    renamed = folder.relabeled(("ape", trained, "dog"))
    assert renamed.classes == ("ape", trained, "dog")
    assert renamed.labels.tolist() == [1, 2]


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    text = message_of(touch(tmp_path, f"{COMPOSED}/1.png", f"{DECOMPOSED}/1.png"))
    assert r"'cafe\u0301'" in text
    assert r"'caf\xe9'" in text


def test_a_model_with_both_forms_keeps_them_apart(tmp_path: Path) -> None:
    folder = scan(touch(tmp_path, f"{DECOMPOSED}/1.png"))
    assert folder.relabeled((COMPOSED, DECOMPOSED)).labels.tolist() == [1]


@pytest.mark.parametrize("name", [
    *("a\x1b[31mb", "a\nb", "a\u202eb", "a\x85b", "a\x7fb"),
    *("owl\u200b", "\u200bowl", "o\u2060wl", "\ufeffowl", "o\u00adwl", "owl\u200e", "o\u180ewl"),
    *("owl\u200d", "\u200cowl", "\u200d"),
])  # fmt: skip
def test_a_class_name_with_control_characters_is_refused(tmp_path: Path, name: str) -> None:
    text = message_of(touch(tmp_path, "dog/1.png", f"{name}/1.png"))
    assert "control characters" in text
    assert "\\" in text
    assert text.isprintable()


FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
FLAG = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"


@pytest.mark.parametrize(
    "name", ["日本", "كلب", "🐶", "\u0645\u06cc\u200c\u062e", "père", FAMILY, FLAG, " owl"]
)
def test_a_class_name_in_any_script_is_accepted(tmp_path: Path, name: str) -> None:
    assert scan(touch(tmp_path, f"{name}/1.png")).classes == (name,)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Owl", "owl"),
        ("owl", "owl "),
        (" owl", "owl"),
        ("barn  owl", "barn owl"),
        ("owl", "\uff4f\uff57\uff4c"),
        ("Stra\u00dfe", "STRASSE"),
        ("\u01c6", "\u01c4"),
        ("barn\u00a0owl", "barn owl"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u062e"),
        ("\ufb01sh", "fish"),
    ],
)
def test_two_classes_that_look_the_same_are_warned_of(tmp_path: Path, one: str, other: str) -> None:
    folder = scan(touch(tmp_path, f"{one}/1.png", f"{other}/1.png", "dog/1.png"))
    assert len(folder.classes) == 3
    assert "have almost the same name: '" in folder.warning
    assert f"dataset {tmp_path}: {folder.warning}" in folder.warnings
    assert scan(touch(tmp_path / "x", f"{one}/1.png", "dog/1.png")).warnings == ()


def test_images_that_may_be_missing_are_a_warning(tmp_path: Path) -> None:
    folder = scan(touch(tmp_path, "a/1.png", "a/2.jp2", "a/x.txt"))
    assert folder.warnings == (
        f"dataset {tmp_path}: 1 images; left out: 1 .jp2 file (JPEG 2000 is not read: save as JPEG "
        "or PNG); 1 file of other kinds (1 .txt)",
    )
    assert scan(touch(tmp_path / "b", "a/1.png", "a/x.txt")).warnings == ()


def test_the_fingerprint_says_when_names_are_in_another_form(tmp_path: Path) -> None:
    before = fingerprint(scan(touch(tmp_path / "a", f"{COMPOSED}/1.png")))
    after = fingerprint(scan(touch(tmp_path / "b", f"{DECOMPOSED}/1.png")))
    assert "another Unicode form" in before.difference(after)

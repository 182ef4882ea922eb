"""Dataset fingerprints and the description of changes."""

from __future__ import annotations

from pathlib import Path

from multigrain.data.fingerprint import DatasetFingerprint, fingerprint
from multigrain.data.image_folder import scan


def write(root: Path, **classes: int) -> Path:
    """Writes files to each class; they are not images."""
    for name, images in classes.items():
        (root / name).mkdir(parents=True)
        for index in range(images):
            (root / name / f"{index}.jpg").write_bytes(b"x" * (index + 1))
    return root


def of(root: Path) -> DatasetFingerprint:
    return fingerprint(scan(root))


def test_the_fingerprint_depends_on_names_and_sizes_only(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, a=2, b=3) for name in ("first", "second"))
    (second / "a" / "0.jpg").write_bytes(b"y")  # of the same size
    (second / "a" / "notes.txt").write_text("no image")
    assert of(first) == of(second)
    assert of(first).difference(of(second)) == ""
    assert (of(first).images, list(of(first).classes)) == (5, ["a", "b"])


def test_equal_files_under_swapped_names_are_another_dataset(tmp_path: Path) -> None:
    root = write(tmp_path, a=2, b=2)
    before = of(root)
    (root / "a" / "0.jpg").rename(root / "a" / "tmp.jpg")
    (root / "a" / "1.jpg").rename(root / "a" / "0.jpg")
    (root / "a" / "tmp.jpg").rename(root / "a" / "1.jpg")
    assert before.difference(of(root)) == (
        "4 images in 2 classes: 'a' has as many images, but other names or sizes"
    )


def test_changes_are_listed_and_a_long_list_is_truncated(tmp_path: Path) -> None:
    before = of(write(tmp_path / "before", **{f"c{n}": 2 for n in range(9)}))
    after = of(write(tmp_path / "after", x=1, **{f"c{n}": 3 for n in range(2, 9)}))
    assert before.difference(after) == (
        "22 images in 8 classes instead of 18 in 9: without the classes 'c0', 'c1'; with the new "
        "class 'x'; 'c2' has 3 images instead of 2; 'c3' has 3 images instead of 2; "
        "'c4' has 3 images instead of 2; and 4 more"
    )


def test_an_inaccessible_file_counts_as_changed(tmp_path: Path) -> None:
    root = write(tmp_path, a=2)
    folder, before = scan(root), of(root)
    (root / "a" / "1.jpg").unlink()
    assert before.difference(fingerprint(folder)) != ""


def test_the_fingerprint_sends_heartbeats(tmp_path: Path) -> None:
    calls: list[int] = []
    fingerprint(scan(write(tmp_path, a=1, b=1)), lambda: calls.append(1))
    assert calls

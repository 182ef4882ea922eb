"""Which images are held out, against what the rule says of every split."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from multigrain.data.held_out import (
    Split,
    equal_files,
    load_held_out,
    recorded_split,
    save_held_out,
    split,
)
from multigrain.data.image_folder import ImageFolder, scan
from multigrain.errors import ErrorKind, MultigrainError


def write(root: Path, classes: dict[str, list[bytes]]) -> ImageFolder:
    """Files of these bytes; no image is decoded for a split."""
    for name, files in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(files):
            (root / name / f"{number:03}.jpg").write_bytes(data)
    return scan(root)


def contents(folder: ImageFolder) -> dict[str, list[bytes]]:
    """The bytes of each class's files, read without the code under test."""
    found: dict[str, list[bytes]] = {}
    for path in folder.paths:
        found.setdefault(path.split("/")[0], []).append((folder.root / path).read_bytes())
    return found


def check(whole: ImageFolder, parts: Split) -> None:
    """What must hold of every split."""
    assert sorted(parts.train.paths + parts.held_out.paths) == whole.paths
    assert parts.train.classes == parts.held_out.classes == whole.classes
    for part in (parts.train, parts.held_out):
        assert [whole.classes[label] for label in part.labels] == [
            path.split("/")[0] for path in part.paths
        ]
    trained, scored = contents(parts.train), contents(parts.held_out)
    left = {data for files in trained.values() for data in files}
    right = {data for files in scored.values() for data in files}
    assert not left & right
    for name, files in contents(whole).items():
        others = {d for other, found in contents(whole).items() if other != name for d in found}
        assert trained[name]
        own = set(files) - others
        if own and len(set(files)) > 1:
            assert scored[name]


@pytest.mark.parametrize("seed", range(12))
def test_random_folders_with_copies(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    # Few different files of few sizes: many copies, within classes and across.
    pool = [bytes([number]) * int(random.integers(1, 4)) for number in range(40)]
    classes = {
        f"c{label}": [pool[at] for at in random.integers(0, len(pool), random.integers(1, 30))]
        for label in range(6)
    }
    classes["sure"] = [b"one of a kind", b"another of a kind"]
    whole = write(tmp_path, classes)
    parts = split(whole, float(random.uniform(0.05, 0.9)), seed)
    check(whole, parts)
    assert split(whole, 0.3, 7).held_out.paths == split(whole, 0.3, 7).held_out.paths


def test_every_class_gives_its_share(tmp_path: Path) -> None:
    sizes = {"a": 100, "b": 50, "c": 10, "d": 3, "e": 2, "f": 1}
    whole = write(
        tmp_path, {name: [f"{name}{n}".encode() for n in range(k)] for name, k in sizes.items()}
    )
    counts = Counter(path[0] for path in split(whole, 0.2, 0).held_out.paths)
    assert counts == {"a": 20, "b": 10, "c": 2, "d": 1, "e": 1}
    many = Counter(path[0] for path in split(whole, 0.9, 0).held_out.paths)
    assert many == {"a": 90, "b": 45, "c": 9, "d": 2, "e": 1}


def test_the_seed_decides_and_nothing_else(tmp_path: Path) -> None:
    files = {name: [f"{name}{n}".encode() for n in range(40)] for name in "ab"}
    one, other = write(tmp_path / "one", files), write(tmp_path / "other", files)
    chosen = [split(one, 0.25, seed).held_out.paths for seed in range(4)]
    assert len({tuple(paths) for paths in chosen}) == 4
    assert [split(other, 0.25, seed).held_out.paths for seed in range(4)] == chosen
    # An image is drawn by its own name: another class changes nothing.
    write(tmp_path / "other", {"c": [b"x", b"y", b"z"]})
    found = split(scan(tmp_path / "other"), 0.25, 0).held_out.paths
    assert [path for path in found if path[0] != "c"] == chosen[0]


def test_images_that_were_held_out_stay_so_and_no_other_is(tmp_path: Path) -> None:
    files = {name: [f"{name}{n}".encode() for n in range(20)] for name in "ab"}
    before = split(write(tmp_path / "data", files), 0.3, 1)
    save_held_out(tmp_path / "held_out.json", before, 0.3, 1)
    recorded = load_held_out(tmp_path / "held_out.json")
    assert recorded == before.held_out.paths
    gone, copied = before.held_out.paths[:2]
    (tmp_path / "data" / "a" / "new.jpg").write_bytes(b"new")
    (tmp_path / "data" / "a" / "zz.jpg").write_bytes((tmp_path / "data" / copied).read_bytes())
    (tmp_path / "data" / gone).unlink()
    now = split(scan(tmp_path / "data"), 0.9, 5, earlier=recorded)
    assert now.held_out.paths == sorted({*before.held_out.paths, "a/zz.jpg"} - {gone})
    check(scan(tmp_path / "data"), now)
    again = recorded_split(scan(tmp_path / "data"), tmp_path / "held_out.json")
    assert again.held_out.paths == [path for path in recorded if path != gone]


def test_names_that_are_not_text_are_recorded(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in (b"\xe9.jpg", b"b.jpg"):
        Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"/" + name)).write_bytes(name)
    whole = scan(tmp_path)
    for seed in range(8):
        parts = split(whole, 0.5, seed)
        save_held_out(tmp_path / "record", parts, 0.5, seed)
        assert load_held_out(tmp_path / "record") == parts.held_out.paths


def test_equal_files_are_found_whatever_is_equal_only_in_part(tmp_path: Path) -> None:
    base = bytes(20_000)
    ends = base[:-1] + b"x"
    middle = base[:10_000] + b"x" + base[10_001:]
    whole = write(tmp_path, {"a": [base, ends, middle, b""], "b": [middle, base, base, b""]})
    assert equal_files(whole, range(len(whole))) == [[0, 5, 6], [2, 4], [3, 7]]
    assert equal_files(whole, [5, 6, 1]) == [[5, 6]]


def test_nothing_can_be_held_out(tmp_path: Path) -> None:
    for name, files in (("ones", {"a": [b"1"], "b": [b"2"]}), ("same", {"a": [b"1", b"1"]})):
        with pytest.raises(MultigrainError, match="can be held out") as caught:
            split(write(tmp_path / name, files), 0.5, 0)
        assert caught.value.kind is ErrorKind.DATASET


def test_a_record_that_does_not_fit_says_so(tmp_path: Path) -> None:
    whole = write(tmp_path / "data", {"a": [b"1", b"2"]})
    record = tmp_path / "held_out.json"
    with pytest.raises(MultigrainError, match="has not recorded"):
        recorded_split(whole, record)
    record.write_text('{"images": ["a/9.jpg"]}')
    with pytest.raises(MultigrainError, match="none of the 1 images"):
        recorded_split(whole, record)
    record.write_text("[]")
    with pytest.raises(MultigrainError, match="cannot be read"):
        recorded_split(whole, record)

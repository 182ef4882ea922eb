"""Data roots."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.specs.data_roots import PathRoots
from tests.unprivileged import unprivileged

FIELD = "spec.dataset.train_path"


@pytest.fixture
def area(tmp_path: Path) -> Path:
    """``root`` (allowed) with a folder and links out, in and in a loop; ``secret`` beside it."""
    for folder in ("root/images", "root-2", "secret"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "secret/key").write_text("x")
    root = tmp_path / "root"
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "out-and-back").symlink_to(tmp_path / "secret/../root/images")
    (root / "in").symlink_to("images")
    (root / "loop").symlink_to("loop")
    (tmp_path / "alias").symlink_to(root)
    return tmp_path


def _check(area: Path, path: str, **options: bool) -> Path:
    return PathRoots([area / "root"]).check(path, FIELD, **options)


def _refused(area: Path, path: str, **options: bool) -> MultigrainError:
    with pytest.raises(MultigrainError) as caught:
        _check(area, path, **options)
    assert caught.value.message.startswith(f"{FIELD}: ")
    assert [violation.field for violation in caught.value.violations] == [FIELD]
    return caught.value


@pytest.mark.parametrize(
    ("path", "real"),
    [
        ("root", "root"),
        ("root/", "root"),
        ("root/images", "root/images"),
        ("root//./images/", "root/images"),
        ("root/images/../images", "root/images"),
        ("secret/../root/images", "root/images"),
        ("root/in", "root/images"),
        ("root/out-and-back", "root/images"),
        ("alias/images", "root/images"),
    ],
)
def test_a_path_under_a_root_is_resolved_to_its_real_path(area: Path, path: str, real: str) -> None:
    assert _check(area, f"{area}/{path}") == area / real


@pytest.mark.parametrize(
    "path",
    [
        "secret",
        "secret/key",
        "secret/nothing",
        "root/../secret",
        "root/out",
        "root/out/key",
        "root/images/../../secret",
        "root-2",
        "root/out/../root-2",
        "",
    ],
)
def test_a_path_outside_the_roots_is_refused(area: Path, path: str) -> None:
    error = _refused(area, f"{area}/{path}")
    assert error.kind is ErrorKind.PATH_NOT_ALLOWED
    assert "--data-root" in error.message


def test_the_error_does_not_reveal_whether_an_outside_path_exists(area: Path) -> None:
    messages = {
        _refused(area, f"{area}/{path}", must_exist=must).message
        for path in ("secret/key", "secret/nothing", "root/out/key", "root/out/nothing")
        for must in (True, False)
    }
    assert len(messages) == 1
    assert "secret" not in messages.pop()


@pytest.mark.parametrize("path", ["root/none", "root/images/none", "root/loop", "root/loop/x"])
def test_a_path_under_a_root_must_exist_by_default(area: Path, path: str) -> None:
    error = _refused(area, f"{area}/{path}")
    assert error.kind is ErrorKind.INVALID_FIELD
    assert "no such file" in error.message
    assert _check(area, f"{area}/{path}", must_exist=False).is_relative_to(area / "root")


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("", "empty"),
        ("images", "relative"),
        ("./images", "relative"),
        ("~/images", "relative"),
        ("file:///data", "relative"),
        ("/a\0b", "NUL"),
        ("/" + "a/" * 3000, "bytes"),
        ("/" + "a" * 300, "bytes"),
        ("/" + "é" * 128, "bytes"),
        ("/\ud800", "no file name"),
    ],
)
def test_a_path_that_is_not_absolute_is_an_invalid_field(area: Path, path: str, word: str) -> None:
    error = _refused(area, path)
    assert error.kind is ErrorKind.INVALID_FIELD
    assert word in error.message
    assert len(error.message) < 200


def test_without_roots_every_path_is_refused(area: Path) -> None:
    with pytest.raises(MultigrainError) as caught:
        PathRoots([]).check(str(area), FIELD)
    assert caught.value.kind is ErrorKind.PATH_NOT_ALLOWED


def test_several_roots_and_linked_roots_are_allowed(area: Path) -> None:
    roots = PathRoots([area / "none", area / "alias", area / "root-2"])
    assert roots.roots == (area / "none", area / "root", area / "root-2")
    assert roots.check(f"{area}/root/images", FIELD) == area / "root/images"
    assert roots.check(f"{area}/root-2", FIELD) == area / "root-2"


def test_a_relative_root_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="not an absolute path"):
        PathRoots([Path("data")])


def test_random_paths_never_escape_the_roots(area: Path) -> None:
    rng = random.Random(3)
    steps = ["..", ".", "root", "images", "in", "out", "out-and-back", "loop", "secret", "key", ""]
    passed = 0
    for _ in range(3000):
        path = "/".join([str(area), *(rng.choice(steps) for _ in range(rng.randrange(1, 7)))])
        try:
            real = _check(area, path)
        except MultigrainError:
            continue
        passed += 1
        assert real.is_relative_to(area / "root")
        # Where the operating system can resolve the path too, the result is the same.
        assert not os.path.exists(path) or os.path.samefile(real, path)
    assert passed > 50


def test_a_path_without_permission_is_not_reported_as_missing(open_path: Path) -> None:
    (open_path / "closed/data").mkdir(parents=True)
    (open_path / "closed").chmod(0)
    roots = PathRoots([open_path])
    with unprivileged() as uid, pytest.raises(MultigrainError) as caught:
        roots.check(f"{open_path}/closed/data", FIELD)
    assert caught.value.kind is ErrorKind.INVALID_FIELD
    assert caught.value.message == (
        f"{FIELD}: the server has no permission for {open_path}/closed/data; let uid {uid} enter "
        "the folders above it"
    )

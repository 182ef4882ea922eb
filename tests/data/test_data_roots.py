"""A dataset shows nothing from outside the data roots, and nothing in it holds up a job."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import pytest
from PIL import Image

from multigrain.data.benchmarks import list_benchmark
from multigrain.data.image_folder import ImageFolder, scan, scan_images
from multigrain.data.listing import LeftOut, Lister, Reason
from multigrain.data.probe import probe
from multigrain.data.source import create_cache
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.limits import ImageLimits, read_limits, write_limits
from multigrain.jobs.context import Reporter, WorkerContext
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind, JobRequest
from tests.hostile_files import NEVER_READ, put, within_seconds


def _images(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name, "PNG")


@pytest.fixture
def roots(tmp_path: Path) -> ImageLimits:
    """Two data roots with images, and a folder outside of them."""
    _images(tmp_path / "root" / "data" / "cat", "1.png", "2.png")
    _images(tmp_path / "root" / "data" / "dog", "1.png")
    _images(tmp_path / "root" / "more", "a.png")
    _images(tmp_path / "other" / "more", "b.png")
    _images(tmp_path / "outside" / "secret", "private.png", "private")
    return ImageLimits(roots=(tmp_path / "root", tmp_path / "other"))


def _left_out(folder: ImageFolder) -> dict[str, int]:
    return folder.left_out.by_reason


def test_links_between_and_inside_the_roots_are_followed(
    tmp_path: Path, roots: ImageLimits
) -> None:
    data = tmp_path / "root" / "data"
    (data / "cat" / "more").symlink_to("../../more")
    (data / "bird").symlink_to(tmp_path / "other" / "more")
    (data / "dog" / "b.png").symlink_to(tmp_path / "other" / "more" / "b.png")
    folder = scan(data, roots)
    assert folder.paths == ["bird/b.png", "cat/1.png", "cat/2.png", "cat/more/a.png",
                            "dog/1.png", "dog/b.png"]  # fmt: skip
    assert not folder.left_out
    assert folder.paths == scan(data).paths
    assert {folder.read(index)[:4] for index in range(len(folder))} == {b"\x89PNG"}


@pytest.mark.parametrize(
    "target", ["{outside}", "../../../outside/secret", "/proc/self/root{outside}"]
)
def test_folders_outside_the_roots_are_left_out(
    tmp_path: Path, roots: ImageLimits, target: str
) -> None:
    data = tmp_path / "root" / "data"
    target = target.format(outside=tmp_path / "outside" / "secret")
    (data / "cat" / "link").symlink_to(target)
    folder = scan(data, roots)
    assert folder.paths == ["cat/1.png", "cat/2.png", "dog/1.png"]
    assert _left_out(folder) == {"outside": 1}
    assert folder.warnings == (
        f"dataset {data}: 3 images; left out: 1 link that leads outside the data roots (cat/link)",
    )
    assert scan_images(data, roots).paths == folder.paths
    assert "cat/link/private.png" in scan(data).paths  # without a daemon


def test_files_outside_the_roots_are_left_out(tmp_path: Path, roots: ImageLimits) -> None:
    data, secret = tmp_path / "root" / "data", tmp_path / "outside" / "secret"
    (data / "cat" / "link.png").symlink_to(secret / "private.png")
    (data / "cat" / "unknown").symlink_to(secret / "private.png")
    (data / "cat" / "missing.png").symlink_to(secret / "nothing.png")
    folder = scan(data, roots)
    assert folder.paths == ["cat/1.png", "cat/2.png", "dog/1.png"]
    # Also the last: whether there is such a file outside the roots is not shown.
    assert _left_out(folder) == {"outside": 3}
    assert "3 links that lead outside the data roots" in folder.warnings[0]


def test_a_class_that_is_outside_is_no_class(tmp_path: Path, roots: ImageLimits) -> None:
    data = tmp_path / "root" / "data"
    (data / "bird").symlink_to(tmp_path / "outside" / "secret")
    folder = scan(data, roots)
    assert folder.classes == ("cat", "dog")
    assert _left_out(folder) == {"outside": 1}
    for path in (data / "dog").iterdir():
        path.unlink()
    (data / "dog" / "1.png").symlink_to(tmp_path / "outside" / "secret" / "private.png")
    with pytest.raises(MultigrainError, match=r"no images in the classes 'dog' .only 1 link that"):
        scan(data, roots)


def test_a_dataset_that_was_replaced_by_a_link_is_refused(
    tmp_path: Path, roots: ImageLimits
) -> None:
    """As right after the daemon has checked its path."""
    data = tmp_path / "root" / "data"
    before = scan(data, roots)
    data.rename(tmp_path / "root" / "kept")
    data.symlink_to(tmp_path / "outside")
    for listing in (scan, scan_images):
        with pytest.raises(MultigrainError, match="leads outside the server's data roots") as error:
            listing(data, roots)
        assert error.value.kind is ErrorKind.PATH_NOT_ALLOWED
    (tmp_path / "outside" / "cat").symlink_to("secret")
    (tmp_path / "outside" / "secret" / "1.png").symlink_to("private.png")
    with pytest.raises(MultigrainError, match="outside the folders that may be read") as error:
        before.read(0)
    assert error.value.kind is ErrorKind.IMAGE_UNREADABLE


def test_a_folder_that_is_replaced_while_it_is_listed_is_left_out(
    tmp_path: Path, roots: ImageLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "root" / "data"
    entries = Lister._entries

    def replacing(self: Lister, folder: object, left_out: LeftOut) -> object:
        yield from entries(self, folder, left_out)  # type: ignore[arg-type]
        cat = data / "cat"
        if not cat.is_symlink():
            cat.rename(tmp_path / "root" / "kept")
            cat.symlink_to(tmp_path / "outside" / "secret")

    monkeypatch.setattr(Lister, "_entries", replacing)
    with pytest.raises(MultigrainError, match=r"'cat' .only 1 link that leads outside"):
        scan(data, roots)


@pytest.mark.parametrize("task", ["groups", "holidays", "ukb", "copydays"])
def test_benchmarks_stay_inside_the_roots(tmp_path: Path, roots: ImageLimits, task: str) -> None:
    root = tmp_path / "root" / task
    names = {
        "groups": ("a/1.png", "a/2.png"),
        "holidays": ("100000.png", "100001.png"),
        "ukb": tuple(f"ukbench0000{i}.png" for i in range(4)),
        "copydays": ("original/200000.png", "strong/200001.png", "distractors/1.png"),
    }[task]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)
    (root / names[-1]).parent.joinpath("link").symlink_to(tmp_path / "outside" / "secret")
    benchmark = list_benchmark(task, root, limits=roots)  # type: ignore[arg-type]
    assert sorted(benchmark.folder.paths) == sorted(names)
    assert benchmark.folder.left_out.count(Reason.OUTSIDE) == 1


@pytest.mark.parametrize("restricted", [True, False])
@pytest.mark.parametrize("kind", NEVER_READ)
def test_an_image_that_became_a_hostile_file_holds_up_nothing(
    tmp_path: Path, roots: ImageLimits, kind: str, restricted: bool
) -> None:
    data = tmp_path / "root" / "data"
    limits = roots if restricted else ImageLimits()
    folder = scan(data, limits)
    put(data / "cat" / "1.png", kind)
    with pytest.raises(MultigrainError) as caught:
        within_seconds(lambda: folder.read(0))
    expected = ErrorKind.IMAGE_TOO_LARGE if kind == "huge" else ErrorKind.IMAGE_UNREADABLE
    assert caught.value.kind is expected
    assert list(within_seconds(lambda: probe(folder, 0.9))) == ["cat/1.png"]
    within_seconds(lambda: create_cache(folder, 1))
    again = within_seconds(lambda: scan(data, limits))
    assert ("cat/1.png" in again.paths) == (kind == "huge")


@pytest.mark.mindspore
@pytest.mark.parametrize("kind", NEVER_READ)
def test_a_hostile_image_does_not_delay_the_choice_of_threads(tmp_path: Path, kind: str) -> None:
    from multigrain.data.pipeline import loader_threads

    _images(tmp_path / "cat", "1.png")
    folder = scan(tmp_path)
    put(tmp_path / "cat" / "1.png", kind)
    assert within_seconds(lambda: loader_threads(0, 1, folder)) >= 1


@pytest.mark.parametrize("kind", ["pipe", "socket", "endless", "loop", "broken"])
def test_hostile_files_without_extension_are_left_out(
    tmp_path: Path, roots: ImageLimits, kind: str
) -> None:
    data = tmp_path / "root" / "data"
    put(data / "cat" / "unknown", kind)
    for limits in (roots, ImageLimits()):
        assert len(within_seconds(lambda limits=limits: scan(data, limits))) == 3


def test_the_roots_reach_the_job_and_a_damaged_file_does_not_lift_them(tmp_path: Path) -> None:
    path = tmp_path / "image_limits.json"
    limits = ImageLimits(1, 2, (Path("/data/a"), tmp_path / "ä b"))
    write_limits(path, limits)
    assert read_limits(path) == limits
    for damaged in ("{}", '{"max_bytes": 1, "max_pixels": 2}', "[" * 10_000, "[]", ""):
        path.write_text(damaged)
        with pytest.raises(MultigrainError) as caught:
            read_limits(path)
        assert caught.value.kind is ErrorKind.STORAGE
    for kind in ("pipe", "endless"):
        put(path, kind)
        with pytest.raises(MultigrainError):
            within_seconds(lambda: read_limits(path))


def test_a_worker_is_restricted_to_the_roots_of_the_daemon_that_started_its_job(
    tmp_path: Path, roots: ImageLimits
) -> None:
    folder = JobFolder(tmp_path)
    request = JobRequest(job_id="j", kind=JobKind.TRAINING, create_time="")
    context = WorkerContext(request, folder, reporter=cast(Reporter, None))
    assert context.roots is None  # without a daemon
    write_limits(folder.image_limits, roots)
    assert context.roots == roots.roots
    assert context.image_limits == roots


def test_reading_a_linked_dataset_uses_no_descriptors_up(
    tmp_path: Path, roots: ImageLimits
) -> None:
    data = tmp_path / "root" / "data"
    (data / "bird").symlink_to(tmp_path / "outside" / "secret")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        folder = scan(data, roots)
        folder.read(0)
    assert len(os.listdir("/proc/self/fd")) == before

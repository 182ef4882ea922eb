"""The reader of files that others name, against everything that a path may lead to."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from multigrain import files
from multigrain.files import (
    FileTooLargeError,
    OutsideRootsError,
    is_within,
    open_descriptor,
    open_folder,
    open_regular,
    read_bytes,
    read_json,
    read_text,
    stat_path,
)
from tests.hostile_files import NEVER_READ, put, within_seconds

LIMIT = 1 << 16


@pytest.fixture(params=["openat2", "parts"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to open a path below a root; this kernel may lack the first."""
    if request.param == "parts":
        monkeypatch.setattr(files, "has_openat2", lambda: False)
    elif not files.has_openat2():
        pytest.skip("this kernel has no openat2")
    return str(request.param)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a file in it, beside one with a secret."""
    inside, outside = tmp_path / "root", tmp_path / "outside"
    for folder, content in ((inside, "inside"), (outside, "secret")):
        (folder / "sub").mkdir(parents=True)
        (folder / "file").write_text(content)
        (folder / "sub" / "file").write_text(content)
    return inside


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("kind", NEVER_READ)
def test_only_regular_files_are_read(tmp_path: Path, kind: str, restricted: bool) -> None:
    path = tmp_path / "hostile"
    put(path, kind)
    roots = [tmp_path, Path("/dev"), Path("/nonexistent")] if restricted else None
    errors = {"broken": "No such file", "loop": "Too many levels", "huge": "it has more than"}
    with pytest.raises(OSError, match=errors.get(kind, "and not a regular file")):
        within_seconds(lambda: read_bytes(path, max_bytes=LIMIT, roots=roots))


def test_a_folder_is_opened_as_a_folder_only(root: Path, tmp_path: Path) -> None:
    put(tmp_path / "pipe", "pipe")
    descriptor = open_folder(root, [root])
    assert sorted(os.listdir(descriptor)) == ["file", "sub"]
    os.close(descriptor)
    for path in (root / "file", tmp_path / "pipe"):
        with pytest.raises(NotADirectoryError):
            within_seconds(lambda path=path: open_folder(path))


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * LIMIT)
    assert read_bytes(path, max_bytes=LIMIT) == b"x" * LIMIT
    with pytest.raises(FileTooLargeError, match=f"more than {LIMIT - 1} bytes"):
        read_bytes(path, max_bytes=LIMIT - 1)
    path.write_bytes(b"")
    assert read_bytes(path, max_bytes=0) == b""


def test_a_huge_file_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FileTooLargeError):
        read_bytes(path, max_bytes=LIMIT)


def test_a_file_that_grows_while_it_is_read_is_cut_off_by_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "grows"
    path.write_bytes(b"x" * 10)
    read = os.read

    def growing(descriptor: int, size: int) -> bytes:
        with path.open("ab") as file:
            file.write(b"x" * 4096)
        return read(descriptor, size)

    monkeypatch.setattr(os, "read", growing)
    with pytest.raises(FileTooLargeError):
        within_seconds(lambda: read_bytes(path, max_bytes=LIMIT))


def test_files_that_claim_to_be_empty_are_read_and_limited() -> None:
    status = Path("/proc/self/status")
    assert os.stat(status).st_size == 0
    assert b"\nPid:" in read_bytes(status, max_bytes=LIMIT)
    with pytest.raises(FileTooLargeError):
        read_bytes(status, max_bytes=16)


def test_documents(tmp_path: Path) -> None:
    path = tmp_path / "document.json"
    path.write_text('{"a": ["ä"]}')
    assert read_text(path, max_bytes=LIMIT) == '{"a": ["ä"]}'
    assert read_json(path) == {"a": ["ä"]}
    path.write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        read_text(path, max_bytes=LIMIT)
    for damaged in (b"\xff\xfe\xfd", b"{", b"[" * 100_000, b'{"a":' * 100_000):
        path.write_bytes(damaged)
        with pytest.raises(ValueError):  # noqa: PT011 - of every kind, but no RecursionError
            read_json(path)


def test_descriptors_are_closed(root: Path, way: str) -> None:
    path = root / "pipe"
    put(path, "pipe")
    outside = root / "out"
    outside.symlink_to("../outside/file")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        assert read_bytes(root / "sub" / "file", max_bytes=LIMIT, roots=[root]) == b"inside"
        for wrong in (path, outside, root / "missing"):
            with pytest.raises(OSError, match=r"."):
                read_bytes(wrong, max_bytes=LIMIT, roots=[root])
    assert len(os.listdir("/proc/self/fd")) == before


# Roots


INSIDE = {
    "plain": "sub/file",
    "dots": "sub/./file",
    "up": "sub/../file",
    "relative link": "relative",
    "absolute link": "absolute",
    "link to a folder": "folder/file",
    "absolute link to a folder": "absolute-folder/file",
    "chain": "chain",
    "out and in again": "detour",
    "link in another root": "other",
}
OUTSIDE = {
    "up": "../outside/file",
    "relative link": "bad-relative",
    "absolute link": "bad-absolute",
    "link to a folder": "bad-folder/file",
    "chain": "bad-chain",
    "link that is missing its target": "bad-missing",
    "above": "bad-above/outside/file",
    "through /proc": "bad-proc/outside/file",
}


@pytest.fixture
def linked(root: Path, tmp_path: Path) -> Path:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("inside")
    links = {
        "relative": "sub/file",
        "absolute": str(root / "sub" / "file"),
        "folder": "sub",
        "absolute-folder": str(root / "sub"),
        "chain": "absolute",
        "detour": "../root/file",
        "other": "../other/file",
        "bad-relative": "../outside/file",
        "bad-absolute": str(tmp_path / "outside" / "file"),
        "bad-folder": "../outside/sub",
        "bad-chain": "bad-absolute",
        "bad-missing": "../outside/nothing",
        "bad-above": "..",
        "bad-proc": f"/proc/self/root{tmp_path}",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    return root


@pytest.mark.parametrize("name", INSIDE)
def test_links_inside_the_roots_are_followed(
    linked: Path, tmp_path: Path, way: str, name: str
) -> None:
    path, roots = linked / INSIDE[name], [linked, tmp_path / "other"]
    assert read_bytes(path, max_bytes=LIMIT, roots=roots) == b"inside"
    assert is_within(path, roots)
    assert stat_path(path, roots) == stat_path(path) == path.stat()


@pytest.mark.parametrize("name", OUTSIDE)
def test_nothing_outside_the_roots_is_read(
    linked: Path, tmp_path: Path, way: str, name: str
) -> None:
    path, roots = linked / OUTSIDE[name], [linked, tmp_path / "other"]
    with pytest.raises(OutsideRootsError) as caught:
        read_bytes(path, max_bytes=LIMIT, roots=roots)
    assert "outside/file" not in str(caught.value.strerror)
    assert not is_within(path, roots)
    with pytest.raises(OutsideRootsError):
        stat_path(path, roots)
    with pytest.raises(OutsideRootsError):
        open_folder(path.parent if "/" in OUTSIDE[name] else path, roots)


def test_without_roots_links_are_followed_and_without_any_root_nothing_is_read(
    linked: Path, way: str
) -> None:
    assert read_bytes(linked / "bad-absolute", max_bytes=LIMIT) == b"secret"
    with pytest.raises(OutsideRootsError):
        read_bytes(linked / "file", max_bytes=LIMIT, roots=())


def test_names_that_begin_like_a_root_are_outside(tmp_path: Path, way: str) -> None:
    (tmp_path / "data-secret").write_text("secret")
    (tmp_path / "data").mkdir()
    with pytest.raises(OutsideRootsError):
        read_bytes(tmp_path / "data-secret", max_bytes=LIMIT, roots=[tmp_path / "data"])


def test_a_root_may_be_a_file_a_link_or_the_whole_system(root: Path, way: str) -> None:
    link = root.parent / "link"
    link.symlink_to(root)
    for path, allowed in (
        (root / "file", root / "file"),
        (link / "file", link),
        (root / "file", link),
        (link / "file", root),
        (root / "file", Path("/")),
    ):
        assert read_bytes(path, max_bytes=LIMIT, roots=[allowed]) == b"inside", (path, allowed)


def test_odd_names(root: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (b"\xff\xfe", b"a..b", b"...", b" ", b"new\nline"):
        path = os.path.join(os.fsencode(root), name)
        with open(path, "wb") as file:
            file.write(name)
        assert read_bytes(os.fsdecode(path), max_bytes=LIMIT, roots=[root]) == name
    for wrong in ("file\0", "x" * 300, "", "x/" * 3000):
        with pytest.raises((OSError, ValueError)):
            read_bytes(root / wrong, max_bytes=LIMIT, roots=[root])
    monkeypatch.chdir(root)
    assert read_bytes("sub/file", max_bytes=LIMIT, roots=[root]) == b"inside"


def test_a_loop_of_links_is_an_error(root: Path, way: str) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    with pytest.raises(OSError, match=r"."):
        read_bytes(root / "a", max_bytes=LIMIT, roots=[root])


@pytest.mark.parametrize("part", ["file", "sub"])
def test_a_swap_after_the_links_were_resolved_leads_nowhere(
    root: Path, way: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part of the path is replaced by a link between the check and the opening."""
    path = root / "sub" / "file"
    link = root / "detour"
    link.symlink_to("../root/sub/file")  # it leaves the root: its links are resolved first
    realpath = os.path.realpath

    def swapping(name: str | os.PathLike[str]) -> str:
        found = realpath(name)
        if os.fspath(name) == str(link) and not (root / "kept").exists():
            victim = path if part == "file" else path.parent
            victim.rename(root / "kept")
            victim.symlink_to(root.parent / "outside" / victim.relative_to(root))
        return found

    monkeypatch.setattr(os.path, "realpath", swapping)
    with pytest.raises(OSError, match=r"."):
        read_bytes(link, max_bytes=LIMIT, roots=[root])
    assert (root / "kept").exists()


def test_swaps_while_reading_never_show_what_is_outside(root: Path, way: str) -> None:
    path, spare = root / "sub", root / "spare"
    outside = root.parent / "outside" / "sub"
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            path.rename(spare)
            path.symlink_to(outside)
            path.unlink()
            spare.rename(path)

    thread = threading.Thread(target=swap, daemon=True)
    thread.start()
    read = 0
    tries = 0
    deadline = time.monotonic() + 60
    try:
        # On a busy machine, all of the first tries may meet the folder when it is away.
        while tries < 3000 or (not read and time.monotonic() < deadline):
            tries += 1
            try:
                assert read_bytes(path / "file", max_bytes=LIMIT, roots=[root]) == b"inside"
                read += 1
            except OSError:
                continue
    finally:
        ended.set()
        thread.join()
    assert read


def test_a_container_that_forbids_openat2_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(files, "_call", forbidden)
    assert files.has_openat2.__wrapped__() is False


def test_open_regular_returns_a_file_object(root: Path) -> None:
    with open_regular(root / "file", [root]) as file:
        assert file.read() == b"inside"
    descriptor = open_descriptor(root / "file", [root])
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


def test_a_damaged_document_names_no_content(tmp_path: Path) -> None:
    path = tmp_path / "document.json"
    path.write_text(json.dumps("x") + "}")
    with pytest.raises(ValueError, match="Extra data"):
        read_json(path)

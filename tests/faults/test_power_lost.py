"""Power loss during a write: everything that was complete before is still used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from multigrain import storage
from multigrain.checkpoint import store
from multigrain.checkpoint.manifest import CheckpointManifest
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.events.log import EventWriter, read_events
from multigrain.events.records import CheckpointRecord, JobState, LossRecord, Record, StateRecord
from multigrain.jobs.runner import History
from multigrain.specs.training import ModelSpec
from multigrain_server.jobs.event_feed import EventFeed

LOSS = LossRecord(1, 10, 1, 1, 0.5, 0.25, 0.25, 0.1)
REPLACEMENT = LossRecord(7, 10, 1, 1, 9.5, 0.25, 0.25, 0.1)  # not synced, unlike states
LAST: dict[str, Record] = {
    "state": StateRecord(JobState.RUNNING, "sch\u00f6n"),
    "loss": LOSS,
    "checkpoint": CheckpointRecord(5, 1, "step-00000005"),
}


@pytest.mark.parametrize("kind", LAST)
def test_an_event_truncated_at_any_byte_is_ignored_and_overwritten(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path, "job") as writer:
        writer.append(StateRecord(JobState.QUEUED), 0)
        writer.append(StateRecord(JobState.STARTING), 1)
        writer.append(LAST[kind], 1)
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    # A file system may also have extended the file before it wrote the bytes: these are zeros.
    torn = [whole[:cut] for cut in range(start, len(whole))]
    torn += [data + bytes(len(whole) - len(data)) for data in torn[::8]]
    for data in torn:
        path.write_bytes(data)
        assert [event.seq for event in read_events(path)] == [1, 2]
        assert (History.read(path).state, History.read(path).attempt) == (JobState.STARTING, 1)
        feed = EventFeed("job", path)  # of a daemon that was running all the time
        feed.poll()
        assert (feed.last_seq, feed.view.state) == (2, JobState.STARTING)
        with EventWriter(path, "job") as writer:
            assert writer.append(REPLACEMENT, 1) == 3
        feed.poll()
        assert (feed.last_seq, feed.view.last_loss) == (3, REPLACEMENT)
        assert [event.seq for event in read_events(path)] == [1, 2, 3]


def save(folder: Path, step: int, value: float | None = None) -> Path:
    manifest = CheckpointManifest(step=step, epoch=1, model=ModelSpec(classes=2))
    model = {"w": np.full(8, step if value is None else value, np.float32)}
    store.save(folder, manifest, model, {"momentum": np.zeros(4, np.float32)})
    return folder / store.folder_name(step)


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "manifest.json"])
def test_a_truncated_checkpoint_is_replaced_by_the_one_before_it(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    broken = save(tmp_path, 2) / name
    whole = broken.read_bytes()
    cuts = range(len(whole)) if name != "manifest.json" else [*range(0, len(whole), 16)]
    for cut in cuts:
        # The rest is missing, or zeros.
        for data in (whole[:cut], whole[:cut] + bytes(len(whole) - cut)):
            if data == whole:
                continue
            broken.write_bytes(data)
            warnings: list[str] = []
            assert store.latest_good(tmp_path, warnings.append) == tmp_path / "step-00000001"
            assert name in warnings[0]
            with pytest.raises(MultigrainError) as caught:
                store.load(tmp_path / "step-00000002")
            assert caught.value.kind is ErrorKind.CHECKPOINT
    broken.unlink()
    assert store.latest_good(tmp_path) == tmp_path / "step-00000001"
    broken.write_bytes(whole)
    assert store.latest_good(tmp_path) == tmp_path / "step-00000002"


class PowerLost(BaseException):
    """The machine stops here: nothing is executed afterwards, not even cleanup."""


@contextmanager
def power_lost_at(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[None]:
    """Executes the first ``number`` changes of the disk, and nothing after them."""
    left = [number]

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            if left[0] == 0:
                raise PowerLost
            left[0] -= 1
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for module, name in (
            (os, "mkdir"),
            (os, "rename"),
            (os, "fsync"),
            (os, "unlink"),
            (os, "rmdir"),
            (shutil, "rmtree"),
            (storage, "_swap"),
        ):
            patch.setattr(module, name, counted(getattr(module, name)))
        yield


@pytest.mark.parametrize("replaced", [False, True], ids=["new", "again"])
def test_power_lost_at_any_moment_of_saving_leaves_the_old_or_the_new_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    if not storage._swap(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this file system cannot swap two names (RENAME_EXCHANGE)")
    seen = set()
    for number in range(100):
        folder = tmp_path / str(number)
        save(folder, 4, value=1.0)
        try:
            with power_lost_at(monkeypatch, number):
                save(folder, 4 if replaced else 5, value=2.0)
            ended = True
        except PowerLost:
            ended = False
        good = store.latest_good(folder)
        assert good is not None, f"no checkpoint is left after {number} changes"
        found = store.load(good).model["w"][0]
        seen.add(float(found))
        save(folder, 6)
        assert store.latest_good(folder) == folder / "step-00000006"
        assert not list(folder.glob(".tmp-*"))
        if ended:
            break
    assert ended
    assert found == 2.0
    assert seen == {1.0, 2.0}
    assert number > 5

"""The checkpoints of a job: ``checkpoints/step-00001200/``.

One process writes (rank 0 of the job). A checkpoint is visible only when it is whole.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors

from multigrain.checkpoint.manifest import CheckpointManifest
from multigrain.checkpoint.reader import (
    MANIFEST,
    MODEL,
    STATE,
    Checkpoint,
    load,
    load_model,
    read_manifest,
    verify,
)
from multigrain.data.fingerprint import DatasetFingerprint
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.events.records import CheckpointRecord
from multigrain.storage import TEMPORARY_PREFIX, clear_temporary, make_folder, publish, write_synced

_NAME = re.compile(r"step-(\d{8,})")

__all__ = [
    "Checkpoint", "best_step", "folder_name", "latest_good", "link_model", "load",
    "load_model", "prune", "read_manifest", "record_of", "resolve", "save", "steps", "verify",
]  # fmt: skip

Tensors = Mapping[str, NDArray[np.generic]]


def folder_name(step: int) -> str:
    """Name of the folder of a step."""
    return f"step-{step:08d}"


def save(
    checkpoints: Path, manifest: CheckpointManifest, model: Tensors, state: Tensors
) -> CheckpointRecord:
    """Writes a checkpoint, durably and as a whole; one of the same step is replaced.

    Later ones, which an earlier attempt wrote and this one could not continue from, are put
    aside as ``unused-step-...``: they are not the newest of this run, whatever their number.

    Args:
        checkpoints: the job's folder of checkpoints; made if missing.
        manifest: its ``files`` are filled in here.
        model: weights and BatchNorm statistics by parameter name.
        state: state of the optimizer, flat.

    Returns:
        The record for the event log.

    Raises:
        MultigrainError: STORAGE if it cannot be written; the earlier ones stay.
    """
    name = folder_name(manifest.step)
    aside = checkpoints / f"{TEMPORARY_PREFIX}{name}"
    try:
        make_folder(checkpoints)
        clear_temporary(checkpoints)
        aside.mkdir()
        files = {
            MODEL: write_synced(aside / MODEL, save_tensors(_contiguous(model))),
            STATE: write_synced(aside / STATE, save_tensors(_contiguous(state))),
        }
        whole = manifest.model_copy(update={"files": files})
        write_synced(aside / MANIFEST, whole.model_dump_json(indent=1).encode())
        publish(aside, checkpoints / name)
        _leave_behind(checkpoints, manifest.step)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise MultigrainError(
            ErrorKind.STORAGE,
            f"checkpoint {name} cannot be written ({error.strerror}): free some space or check "
            "the disk, then resume the job",
        ) from error
    return record_of(checkpoints / name, whole)


def record_of(path: Path, manifest: CheckpointManifest) -> CheckpointRecord:
    """The record of a checkpoint for the event log, as ``save`` returns it."""
    size = (path / MANIFEST).stat().st_size + sum(file.bytes for file in manifest.files.values())
    return CheckpointRecord(
        step=manifest.step,
        epoch=manifest.epoch,
        name=path.name,
        bytes=size,
        best=manifest.position.get("best_step") == manifest.step,
    )


def _leave_behind(checkpoints: Path, step: int) -> None:
    for later, path in steps(checkpoints):
        if later > step:
            aside = path.with_name(f"unused-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def steps(checkpoints: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint, oldest first, good or not."""
    if not checkpoints.is_dir():
        return []
    found = [(_NAME.fullmatch(path.name), path) for path in checkpoints.iterdir()]
    return sorted((int(match[1]), path) for match, path in found if match and path.is_dir())


def link_model(checkpoint: Path, into: Path) -> Path:
    """Gives the weights of a checkpoint a second name, which stays when it is pruned or deleted.

    Args:
        checkpoint: its folder.
        into: a new folder; the weights are in ``into/step-...`` as in ``checkpoint``. They take
            no room, where the file system has hard links and both are on one.

    Returns:
        The new folder of the checkpoint, good for ``load_model``.

    Raises:
        MultigrainError: NOT_FOUND if it has been removed meanwhile.
        OSError: if it cannot be written.
    """
    linked = into / checkpoint.name
    linked.mkdir(parents=True)
    for name in (MANIFEST, MODEL):
        try:
            _link(checkpoint / name, linked / name)
        except FileNotFoundError as error:
            raise MultigrainError(
                ErrorKind.NOT_FOUND,
                f"{checkpoint.name} has been removed meanwhile: newer checkpoints replaced it, or "
                "its job was deleted; ask again",
            ) from error
    return linked


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # no hard links here
        shutil.copyfile(source, target)


def latest_good(checkpoints: Path, log: Callable[[str], None] | None = None) -> Path | None:
    """The newest checkpoint that is whole.

    Args:
        checkpoints: the job's folder of checkpoints.
        log: told of each newer one that is skipped, and why.

    Returns:
        Its folder, or None if there is none.
    """
    for _, path in reversed(steps(checkpoints)):
        try:
            verify(path)
        except MultigrainError as error:
            if log is not None:
                log(error.message)
        else:
            return path
    return None


def prune(checkpoints: Path, keep: int, protect: Iterable[int] = ()) -> list[str]:
    """Removes all but the newest ``keep`` checkpoints, the best one and those of ``protect``.

    Args:
        checkpoints: the job's folder of checkpoints.
        keep: how many of the newest stay, at least 1.
        protect: steps that stay as well.

    Returns:
        Names of what was removed.
    """
    staying = {*protect, best_step(checkpoints)}
    removed = []
    for step, path in steps(checkpoints)[: -max(keep, 1)]:
        if step in staying:
            continue
        # Hidden first: a half-removed checkpoint must not look like a damaged one.
        aside = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
        removed.append(path.name)
    return removed


def best_step(checkpoints: Path) -> int | None:
    """The step of the best checkpoint, as the newest readable one says.

    Its ``position`` has ``best_step``, 0 or missing where no evaluation has taken place.
    """
    for _, path in reversed(steps(checkpoints)):
        try:
            return int(read_manifest(path).position.get("best_step", 0)) or None
        except (MultigrainError, ValueError):
            continue
    return None


def resolve(checkpoints: Path, which: str) -> Path:
    """The folder of "last" (the newest whole one), "best" or a step number.

    Raises:
        MultigrainError: NOT_FOUND, or INVALID_FIELD if ``which`` is none of these.
    """
    if which in ("", "last"):
        last = latest_good(checkpoints)
        if last is None:
            raise MultigrainError(
                ErrorKind.NOT_FOUND, "the job has no whole checkpoint yet: wait for its first one"
            )
        return last
    if which == "best":
        best = best_step(checkpoints)
        if best is None or not (checkpoints / folder_name(best)).is_dir():
            raise MultigrainError(
                ErrorKind.NOT_FOUND,
                'the job has no best checkpoint: it did not evaluate while training; use "last" '
                "or set evaluation.every_epochs",
            )
        return checkpoints / folder_name(best)
    if not (which.isascii() and which.isdigit()):
        raise MultigrainError.field(
            "checkpoint", f'{which!r} is not "last", "best" or a step number'
        )
    existing = steps(checkpoints)
    for step, path in existing:
        if step == int(which):
            return path
    there = ", ".join(str(step) for step, _ in existing) or "none"
    raise MultigrainError(
        ErrorKind.NOT_FOUND, f"the job has no checkpoint of step {which}; there are: {there}"
    )


def _contiguous(tensors: Tensors) -> dict[str, NDArray[np.generic]]:
    # np.ascontiguousarray would turn a scalar into a vector.
    return {name: np.asarray(value, order="C") for name, value in tensors.items()}


# MERGED: Whether a training may go on from a checkpoint with the images that there are now.


def check_dataset(
    manifest: CheckpointManifest, now: DatasetFingerprint, *, allow_changes: bool
) -> str:
    """What has changed since the checkpoint was written, in words; "" if nothing is known to.

    Args:
        manifest: of the checkpoint.
        now: of the training set as it is.
        allow_changes: whether that is acceptable.

    Raises:
        MultigrainError: DATASET if it has changed and must not.
    """
    difference = manifest.dataset.difference(now) if manifest.dataset is not None else ""
    if not difference:
        return ""
    changed = (
        f"the training set is not that of the checkpoint of step {manifest.step}: it has "
        f"{difference}"
    )
    if allow_changes:
        return changed
    raise MultigrainError(
        ErrorKind.DATASET,
        f"{changed}. Going on would not give what the uninterrupted job would have: put the "
        "images back, or start a training with this checkpoint as initial_weights; "
        "dataset.allow_changes, set when a job is started, lets it go on all the same",
    )

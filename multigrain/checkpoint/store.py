"""The checkpoints of a job: ``checkpoints/step-00001200/``.

One process writes them: rank 0 of the job. A checkpoint becomes visible only when it is complete.
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
from multigrain.files import open_regular
from multigrain.storage import TEMPORARY_PREFIX, clear_temporary, make_folder, publish, write_synced

_NAME = re.compile(r"step-(\d{8,})")

__all__ = [
    "Checkpoint", "best_step", "folder_name", "latest_good", "link_model", "load",
    "load_model", "prune", "read_manifest", "record_of", "resolve", "save", "steps", "verify",
]  # fmt: skip

Tensors = Mapping[str, NDArray[np.generic]]


def folder_name(step: int) -> str:
    """Returns the name of a step's folder."""
    return f"step-{step:08d}"


def save(
    checkpoints: Path, manifest: CheckpointManifest, model: Tensors, state: Tensors
) -> CheckpointRecord:
    """Writes a checkpoint durably and atomically; one of the same step is replaced.

    Checkpoints of later steps, which an earlier attempt wrote but this one could not resume from,
    are moved aside as ``unused-step-...``: they do not belong to this run.

    Args:
        checkpoints: the job's folder of checkpoints; created if missing.
        manifest: its ``files`` are filled in here.
        model: weights and BatchNorm statistics by parameter name.
        state: optimizer state, flat.

    Returns:
        The record for the event log.

    Raises:
        MultigrainError: STORAGE, if it cannot be written; earlier checkpoints remain.
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
        _move_aside_later(checkpoints, manifest.step)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise MultigrainError(
            ErrorKind.STORAGE,
            f"checkpoint {name} cannot be written ({error.strerror}): free some space or check "
            "the disk, then resume the job",
        ) from error
    return record_of(checkpoints / name, whole)


def record_of(path: Path, manifest: CheckpointManifest) -> CheckpointRecord:
    """Returns a checkpoint's record for the event log, as :func:`save` does."""
    size = (path / MANIFEST).stat().st_size + sum(file.bytes for file in manifest.files.values())
    return CheckpointRecord(
        step=manifest.step,
        epoch=manifest.epoch,
        name=path.name,
        bytes=size,
        best=manifest.position.get("best_step") == manifest.step,
    )


def _move_aside_later(checkpoints: Path, step: int) -> None:
    for later, path in steps(checkpoints):
        if later > step:
            aside = path.with_name(f"unused-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def steps(checkpoints: Path) -> list[tuple[int, Path]]:
    """Returns (step, folder) of every checkpoint, oldest first, intact or not."""
    if not checkpoints.is_dir():
        return []
    found = [(_NAME.fullmatch(path.name), path) for path in checkpoints.iterdir()]
    return sorted((int(match[1]), path) for match, path in found if match and path.is_dir())


def link_model(checkpoint: Path, into: Path) -> Path:
    """Hard-links a checkpoint's weights into a new folder, so that they survive its pruning.

    Args:
        checkpoint: its folder.
        into: a new folder; the links are in ``into/step-...``. Without hard links (another file
            system, or one that has none) the files are copied.

    Returns:
        The folder with the links, for :func:`load_model`.

    Raises:
        MultigrainError: NOT_FOUND, if the checkpoint has been removed meanwhile.
        OSError: if the folder cannot be written.
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
                "its job was deleted; try again",
            ) from error
    return linked


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # no hard links here
        with open_regular(source) as file, target.open("xb") as copy:
            shutil.copyfileobj(file, copy)


def latest_good(checkpoints: Path, log: Callable[[str], None] | None = None) -> Path | None:
    """Finds the newest intact checkpoint.

    Args:
        checkpoints: the job's folder of checkpoints.
        log: called with a message for each newer checkpoint that is damaged.

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
        keep: number of the newest to keep, at least 1.
        protect: steps to keep as well.

    Returns:
        Names of the removed folders.
    """
    kept = {*protect, best_step(checkpoints)}
    removed = []
    for step, path in steps(checkpoints)[: -max(keep, 1)]:
        if step in kept:
            continue
        # Renamed first: a partly removed checkpoint must not look like a damaged one.
        aside = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
        removed.append(path.name)
    return removed


def best_step(checkpoints: Path) -> int | None:
    """Returns the step of the best checkpoint, or None.

    It is ``best_step`` in the ``position`` of the newest readable manifest; 0 or missing before
    the first evaluation.
    """
    for _, path in reversed(steps(checkpoints)):
        try:
            return int(read_manifest(path).position.get("best_step", 0)) or None
        except (MultigrainError, ValueError, OverflowError):
            continue
    return None


def resolve(checkpoints: Path, which: str) -> Path:
    """Returns the folder of "last" (the newest intact checkpoint), "best" or a step number.

    Raises:
        MultigrainError: NOT_FOUND; INVALID_FIELD, if ``which`` is none of these.
    """
    if which in ("", "last"):
        last = latest_good(checkpoints)
        if last is None:
            raise MultigrainError(
                ErrorKind.NOT_FOUND, "the job has no intact checkpoint yet: wait for its first one"
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
    available = ", ".join(str(step) for step, _ in existing) or "none"
    raise MultigrainError(
        ErrorKind.NOT_FOUND, f"the job has no checkpoint of step {which}; available: {available}"
    )


def _contiguous(tensors: Tensors) -> dict[str, NDArray[np.generic]]:
    # np.ascontiguousarray would turn a scalar into a vector.
    return {name: np.asarray(value, order="C") for name, value in tensors.items()}


def check_dataset(
    manifest: CheckpointManifest, now: DatasetFingerprint, *, allow_changes: bool
) -> str:
    """Checks whether the training set is still that of a checkpoint.

    Args:
        manifest: the checkpoint's.
        now: fingerprint of the present training set.
        allow_changes: whether changes are allowed.

    Returns:
        A description of what has changed; "" if nothing has.

    Raises:
        MultigrainError: DATASET, if it has changed and changes are not allowed.
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
        f"{changed}. A resumed job would not give the result of an uninterrupted one: restore the "
        "images, or start a training job with this checkpoint as initial_weights; jobs started "
        "with dataset.allow_changes accept changes",
    )

"""Job folders come into being whole, and go at once."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from datetime import UTC, datetime
from pathlib import Path

import structlog

from multigrain.errors import MultigrainError
from multigrain.events.log import EventWriter, LockHeldError, is_locked
from multigrain.events.records import JobState, Record, StateRecord
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain_server.devices import Lease
from multigrain_server.storage_errors import stored

_PREFIX = {JobKind.TRAINING: "train", JobKind.EVALUATION: "eval", JobKind.EXPORT: "export"}
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_ASIDE = (".new-", ".trash-")


def new_job_id(kind: JobKind) -> str:
    """A readable, sortable, unique id: ``train-20260131-120000-1f2e3d``."""
    return f"{_PREFIX[kind]}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def check_job_id(job_id: str) -> str:
    """The id, if it has the form of one.

    Raises:
        MultigrainError: INVALID_FIELD.
    """
    if not job_id:
        raise MultigrainError.field("job_id", "is empty; give the job_id that Start... returned")
    if not _ID.fullmatch(job_id):
        raise MultigrainError.field(
            "job_id", "is not a job id (lower-case letters, digits and '-', at most 64)"
        )
    return job_id


def create_folder(
    jobs_dir: Path, request: JobRequest, message: str, checkpoint: Path | None = None
) -> JobFolder:
    """Writes a job's folder with its first event, QUEUED. A crash leaves all of it or nothing.

    Args:
        jobs_dir: the folder of job folders.
        request: what was asked.
        message: why the job is queued.
        checkpoint: of another job, to be read by this one. It is linked into the folder: while
            this job waits, the other one may go on and remove it.

    Raises:
        MultigrainError: STORAGE, or NOT_FOUND if the checkpoint is gone.
    """
    aside = JobFolder(jobs_dir / f".new-{request.job_id}")
    final = JobFolder(jobs_dir / request.job_id)
    try:
        with stored("the job cannot be written", "jobs/ of the data directory"):
            aside.path.mkdir()
            aside.logs.mkdir()
            if checkpoint is not None:
                # Here, not above: it brings numpy, which a start of the daemon should not wait for.
                from multigrain.checkpoint.store import link_model

                link_model(checkpoint, aside.weights)
            with aside.spec.open("x") as file:
                file.write(request.model_dump_json(indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
            with EventWriter(aside.events, request.job_id) as writer:
                writer.append(StateRecord(JobState.QUEUED, message), 0)
            sync_folder(aside.path)
            aside.path.rename(final.path)
            sync_folder(jobs_dir)
    except MultigrainError:
        shutil.rmtree(aside.path, ignore_errors=True)
        raise
    return final


def move_to_trash(folder: JobFolder) -> Path:
    """Takes a job's folder out of sight in one step; the caller removes what is returned."""
    trash = folder.path.with_name(f".trash-{folder.job_id}-{secrets.token_hex(3)}")
    folder.path.rename(trash)
    sync_folder(trash.parent)
    return trash


def remove_leftovers(jobs_dir: Path) -> None:
    """Removes what a crash left of jobs that were being created or deleted."""
    for path in jobs_dir.iterdir():
        if path.name.startswith(_ASIDE):
            shutil.rmtree(path, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# MERGED: The devices of a running job, noted in its folder: the index can be lost, the job goes
# on.


_log = structlog.get_logger(__name__)


def save_lease(folder: JobFolder, lease: Lease) -> None:
    """Notes a lease before its runner starts.

    Raises:
        OSError: if it cannot be written.
    """
    aside = folder.lease.with_name(f".{folder.lease.name}")
    aside.write_text(json.dumps({"kind": lease.kind, "units": lease.units}) + "\n")
    os.replace(aside, folder.lease)


def load_lease(folder: JobFolder) -> Lease | None:
    """What was noted; None if nothing was, or it cannot be read."""
    try:
        body = json.loads(folder.lease.read_text())
        return Lease(folder.job_id, str(body["kind"]), tuple(int(u) for u in body["units"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.error("lease unreadable", job_id=folder.job_id, reason=repr(error))
        return None


def drop_lease(folder: JobFolder) -> None:
    """Forgets it; harmless if there is none. One that stays is never looked at again."""
    try:
        folder.lease.unlink(missing_ok=True)
    except OSError as error:
        _log.error("lease not removed", job_id=folder.job_id, reason=repr(error))


# MERGED: That a job was asked to end, noted in its folder: the index can be lost, the wish is
# kept.


def save_cancel(folder: JobFolder, queued_time: str) -> None:
    """Notes the wish for one run of the job, known by when it was queued: a resumed job is not
    to be ended by an old one.

    Raises:
        OSError: if it cannot be written.
    """
    folder.cancel.write_text(queued_time + "\n")


def load_cancel(folder: JobFolder, queued_time: str) -> bool:
    """Whether that run was asked to end."""
    try:
        return folder.cancel.read_text().strip() == queued_time
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        _log.error("request to end unreadable", job_id=folder.job_id, reason=repr(error))
        return False


# MERGED: The few events that the daemon writes itself, where no runner lives to write them.


def append(folder: JobFolder, record: Record, attempt: int) -> bool:
    """Appends one event to a log that nobody writes. False if somebody does.

    Raises:
        MultigrainError: STORAGE.
    """
    # A look first: taking a held lock would wait for it, and the event loop with it.
    if is_locked(folder.events):
        return False
    try:
        with EventWriter(folder.events, folder.job_id) as writer:
            writer.append(record, attempt)
    except LockHeldError:
        return False
    return True


def runner_log_tail(folder: JobFolder, size: int = 4096) -> str:
    """The end of what the runner printed, in at most ``size`` bytes."""
    try:
        with (folder.logs / "runner.log").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""

"""Job folders on disk: created and deleted atomically, and the files that the daemon writes."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from datetime import UTC, datetime
from pathlib import Path

import structlog

from multigrain.errors import MultigrainError
from multigrain.events.log import EventWriter, LockHeldError, is_locked
from multigrain.events.records import JobState, Record, StateRecord
from multigrain.files import read_json, read_tail, read_text
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.storage import replace_file, sync_folder, write_synced
from multigrain_server.devices import Lease
from multigrain_server.storage_errors import storage_errors

_PREFIX = {JobKind.TRAINING: "train", JobKind.EVALUATION: "eval", JobKind.EXPORT: "export"}
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_SMALL_BYTES = 1 << 16  # of a lease or a cancel request
_TEMPORARY = (".new-", ".trash-")

_log = structlog.get_logger(__name__)


def new_job_id(kind: JobKind) -> str:
    """A readable, sortable, unique id: ``train-20260131-120000-1f2e3d``."""
    return f"{_PREFIX[kind]}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def check_job_id(job_id: str) -> str:
    """Returns the id unchanged.

    Raises:
        MultigrainError: INVALID_FIELD if it is empty or not well-formed.
    """
    if not job_id:
        raise MultigrainError.field("job_id", "is empty; give the job_id that Start... returned")
    if not _ID.fullmatch(job_id):
        raise MultigrainError.field(
            "job_id", "is not a job id (lower-case letters, digits and '-', at most 64)"
        )
    return job_id


def create_folder(
    jobs_dir: Path,
    request: JobRequest,
    message: str,
    checkpoint: Path | None = None,
    held_out: Path | None = None,
) -> JobFolder:
    """Writes a job's folder with its first event, QUEUED. A crash leaves all of it or nothing.

    Args:
        jobs_dir: the folder of all job folders.
        request: the job's specification.
        message: why the job is queued.
        checkpoint: folder of another job's checkpoint that this job reads. Its files are linked
            into the new folder, because the other job may delete it before this one starts.
        held_out: the record of another job's held-out images, likewise.

    Raises:
        MultigrainError: STORAGE, or NOT_FOUND if the checkpoint no longer exists.
    """
    aside = JobFolder(jobs_dir / f".new-{request.job_id}")
    final = JobFolder(jobs_dir / request.job_id)
    try:
        with storage_errors("the job cannot be written", "jobs/ of the data directory"):
            aside.path.mkdir()
            aside.logs.mkdir()
            if checkpoint is not None:
                # Imported here, because it imports numpy, which would slow down the daemon's start.
                from multigrain.checkpoint.store import link_model

                link_model(checkpoint, aside.weights)
            if held_out is not None:
                shutil.copyfile(held_out, aside.held_out)
            write_synced(aside.spec, (request.model_dump_json(indent=2) + "\n").encode())
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
    """Renames a job's folder, so that the job is gone at once; the caller removes the result."""
    trash = folder.path.with_name(f".trash-{folder.job_id}-{secrets.token_hex(3)}")
    folder.path.rename(trash)
    sync_folder(trash.parent)
    return trash


def remove_leftovers(jobs_dir: Path) -> None:
    """Removes folders of jobs that were being created or deleted when the daemon crashed."""
    for path in jobs_dir.iterdir():
        if path.name.startswith(_TEMPORARY):
            shutil.rmtree(path, ignore_errors=True)


def save_lease(folder: JobFolder, lease: Lease) -> None:
    """Writes the devices of a job to its folder: a later daemon needs them even without its index.

    Raises:
        OSError: if the file cannot be written.
    """
    body = json.dumps({"kind": lease.kind, "units": lease.units})
    replace_file(folder.lease, f"{body}\n".encode())


def load_lease(folder: JobFolder) -> Lease | None:
    """The saved lease; None if there is none, or it cannot be read."""
    try:
        body = read_json(folder.lease, max_bytes=_SMALL_BYTES)
        return Lease(folder.job_id, str(body["kind"]), tuple(int(u) for u in body["units"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.error("lease unreadable", job_id=folder.job_id, reason=repr(error))
        return None


def drop_lease(folder: JobFolder) -> None:
    """Removes the saved lease, if there is one. Of an ended job it would have no effect."""
    try:
        folder.lease.unlink(missing_ok=True)
    except OSError as error:
        _log.error("cannot remove the lease file", job_id=folder.job_id, reason=repr(error))


def save_cancel(folder: JobFolder, queued_time: str) -> None:
    """Writes a cancel request to the job's folder: it must survive the loss of the index.

    Args:
        folder: of the job.
        queued_time: when the job was queued, which identifies the run to cancel: a job that is
            resumed later is another run.

    Raises:
        OSError: if the file cannot be written.
    """
    replace_file(folder.cancel, f"{queued_time}\n".encode())


def load_cancel(folder: JobFolder, queued_time: str) -> bool:
    """Whether cancellation of the run that was queued then has been requested."""
    try:
        return read_text(folder.cancel, max_bytes=_SMALL_BYTES).strip() == queued_time
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        _log.error("cancel request unreadable", job_id=folder.job_id, reason=repr(error))
        return False


def append_event(folder: JobFolder, record: Record, attempt: int) -> bool:
    """Appends one event to the event log of a job that has no runner.

    Returns:
        False if a runner holds the log.

    Raises:
        MultigrainError: STORAGE.
        OSError: if the event log cannot be opened, or is no regular file.
    """
    # Checked first, because EventWriter would block the event loop waiting for the lock.
    if is_locked(folder.events):
        return False
    try:
        with EventWriter(folder.events, folder.job_id) as writer:
            writer.append(record, attempt)
    except LockHeldError:
        return False
    return True


def runner_log_tail(folder: JobFolder, size: int = 4096) -> str:
    """The last ``size`` bytes of the runner's output."""
    try:
        return read_tail(folder.logs / "runner.log", size)[0].decode(errors="replace")
    except OSError:
        return ""

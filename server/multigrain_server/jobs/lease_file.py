"""The devices of a running job, noted in its folder: the index can be lost, the job goes on."""

from __future__ import annotations

import json
import os

import structlog

from multigrain.jobs.folder import JobFolder
from multigrain_server.jobs.leases import Lease

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

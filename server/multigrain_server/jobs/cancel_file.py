"""That a job was asked to end, noted in its folder: the index can be lost, the wish is kept."""

from __future__ import annotations

import structlog

from multigrain.jobs.folder import JobFolder

_log = structlog.get_logger(__name__)


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

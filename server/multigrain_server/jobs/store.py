"""The index of jobs. Everything in it can be rebuilt from the job folders."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from functools import lru_cache

from multigrain.events.records import JobState
from multigrain.jobs.job_request import JobRequest
from multigrain_server.database import Database
from multigrain_server.jobs.job import NESTED, Job, JobView
from multigrain_server.paging import PageToken

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
  job_id TEXT PRIMARY KEY,
  kind TEXT NOT NULL,
  name_folded TEXT NOT NULL,
  labels TEXT NOT NULL,
  state TEXT NOT NULL,
  create_time TEXT NOT NULL,
  request_id TEXT NOT NULL,
  request TEXT NOT NULL,
  view TEXT NOT NULL,
  last_seq INTEGER NOT NULL,
  events_bytes INTEGER NOT NULL,
  cancel_requested INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX IF NOT EXISTS jobs_by_request ON jobs (request_id) WHERE request_id <> '';
CREATE INDEX IF NOT EXISTS jobs_by_time ON jobs (create_time DESC, job_id DESC);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state);
CREATE INDEX IF NOT EXISTS jobs_by_shown_state ON jobs (state, cancel_requested);
CREATE TABLE IF NOT EXISTS job_view_format (one INTEGER PRIMARY KEY, format TEXT NOT NULL);
"""

# Changes whenever the fields of a stored view change.
VIEW_FORMAT = hashlib.sha256(
    repr(sorted((field.name, str(field.type)) for field in fields(JobView))).encode()
    + repr(sorted((f.name, str(f.type)) for kind in NESTED for f in fields(kind))).encode()
).hexdigest()

# The same rule as Job.state.
_SHOWN_STATE = (
    "(CASE WHEN cancel_requested AND state IN ('QUEUED', 'STARTING', 'RUNNING')"
    " THEN 'STOPPING' ELSE state END)"
)
_ENDED = frozenset(state.value for state in JobState if state.terminal)
_CACHED_ROWS = 512
_TERMINAL = "('SUCCEEDED', 'FAILED', 'CANCELLED')"


@dataclass(frozen=True)
class JobFilter:
    """Filter of a listing; an empty field matches all. States are those shown (``Job.state``)."""

    states: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    name_contains: str = ""
    id_prefix: str = ""


@dataclass(frozen=True)
class JobRow:
    """A row of the index. ``events_bytes``: how much of the event log ``job.view`` includes."""

    job: Job
    events_bytes: int


@dataclass(frozen=True)
class IndexedJob:
    """What the index has of a job.

    Attributes:
        ended: whether it is in a terminal state.
        events_bytes: how much of its event log is included; -1: the log must be read again.
    """

    ended: bool
    events_bytes: int


class JobStore:
    """Rows of jobs in the daemon's database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ended = lru_cache(maxsize=_CACHED_ROWS)(self._fetch)
        if _format_of(database) != VIEW_FORMAT:
            # Views of another version may lack fields: they are derived from the events again.
            with database.transaction():
                database.execute("UPDATE jobs SET events_bytes=-1")
                database.execute(
                    "INSERT OR REPLACE INTO job_view_format VALUES (1, ?)", (VIEW_FORMAT,)
                )

    def transaction(self) -> AbstractContextManager[None]:
        """Commits all changes of the block together, or none of them if it raises."""
        return self._database.transaction()

    def insert(self, request: JobRequest, view: JobView, events_bytes: int) -> None:
        """Adds a job.

        Raises:
            sqlite3.IntegrityError: if its id or its request_id is taken.
        """
        self._database.execute(
            "INSERT INTO jobs (job_id, kind, name_folded, labels, state, create_time, request_id,"
            " request, view, last_seq, events_bytes) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
            (
                request.job_id,
                request.kind.value,
                request.name.casefold(),
                json.dumps(request.labels),
                view.state.value,
                request.create_time,
                request.request_id,
                request.model_dump_json(),
                view.to_json(),
                view.last_seq,
                events_bytes,
            ),
        )

    def save_view(self, job_id: str, view: JobView, events_bytes: int) -> None:
        self._database.execute(
            "UPDATE jobs SET state=?, view=?, last_seq=?, events_bytes=? WHERE job_id=?",
            (view.state.value, view.to_json(), view.last_seq, events_bytes, job_id),
        )

    def save_cancel(self, job_id: str, requested: bool) -> None:
        self._database.execute(
            "UPDATE jobs SET cancel_requested=? WHERE job_id=?", (int(requested), job_id)
        )

    def delete(self, job_id: str) -> None:
        self._database.execute("DELETE FROM jobs WHERE job_id=?", (job_id,))

    def get(self, job_id: str) -> JobRow | None:
        return self._one("SELECT * FROM jobs WHERE job_id=?", job_id)

    def by_request_id(self, request_id: str) -> JobRow | None:
        """The job that was submitted with this request_id (the idempotency key); None for ""."""
        return self._one("SELECT * FROM jobs WHERE request_id=? AND request_id <> ''", request_id)

    def indexed(self) -> dict[str, IndexedJob]:
        """Every job in the index, oldest first, without decoding the rows."""
        rows = self._database.execute(
            "SELECT job_id, state, events_bytes FROM jobs ORDER BY create_time, job_id"
        )
        return {
            row["job_id"]: IndexedJob(row["state"] in _ENDED, row["events_bytes"]) for row in rows
        }

    def counts(self) -> dict[str, int]:
        """Number of jobs by state."""
        rows = self._database.execute(
            f"SELECT {_SHOWN_STATE} AS shown, count(*) AS n FROM jobs GROUP BY shown"
        )
        return {row["shown"]: row["n"] for row in rows}

    def latest_ended(self, limit: int) -> Iterator[JobRow]:
        """The newest jobs that have ended. Read now, decoded one by one as they are iterated.

        Decoded rows are cached until they change: every scrape of the metrics reads hundreds,
        and decoding them would block the event loop.
        """
        rows = self._database.execute(
            # The unary plus makes SQLite use the index on time instead of sorting all ended jobs.
            "SELECT job_id, last_seq, events_bytes, cancel_requested FROM jobs"
            f" WHERE +state IN {_TERMINAL} ORDER BY create_time DESC, job_id DESC LIMIT ?",
            (limit,),
        )
        return (row for key in rows.fetchall() for row in (self._ended(*key),) if row is not None)

    def page(self, which: JobFilter, after: PageToken | None, limit: int) -> Iterator[JobRow]:
        """At most ``limit`` jobs, newest first. Read now, decoded one by one as they are iterated.

        Args:
            which: the filter.
            after: token of create_time and job_id of the last job on the previous page.
            limit: number of jobs.
        """
        where: list[str] = ["1"]
        values: list[str | int] = []
        for column, wanted in (("kind", which.kinds), (_SHOWN_STATE, which.states)):
            if wanted:
                where.append(f"{column} IN ({','.join('?' * len(wanted))})")
                values += list(wanted)
        for key, value in which.labels:
            where.append("EXISTS (SELECT 1 FROM json_each(labels) WHERE key=? AND value=?)")
            values += [key, value]
        if which.name_contains:
            where.append("instr(name_folded, ?) > 0")
            values.append(which.name_contains.casefold())
        if which.id_prefix:
            where.append("substr(job_id, 1, ?) = ?")
            values += [len(which.id_prefix), which.id_prefix]
        if after is not None:
            where.append("(create_time, job_id) < (?, ?)")
            values += after.position
        rows = self._database.execute(
            f"SELECT * FROM jobs WHERE {' AND '.join(where)}"
            " ORDER BY create_time DESC, job_id DESC LIMIT ?",
            (*values, limit),
        )
        return map(_row, rows.fetchall())

    def _fetch(self, job_id: str, *_changing: int) -> JobRow | None:
        """A row; None if it was deleted meanwhile. The other arguments are cache keys, which
        change whenever it changes."""
        return self.get(job_id)

    def _one(self, statement: str, value: str) -> JobRow | None:
        row = self._database.execute(statement, (value,)).fetchone()
        return _row(row) if row is not None else None


def _format_of(database: Database) -> str:
    row = database.execute("SELECT format FROM job_view_format").fetchone()
    return row["format"] if row is not None else ""


def _row(row: sqlite3.Row) -> JobRow:
    request = JobRequest.model_validate_json(row["request"])
    try:
        view, events_bytes = JobView.from_json(row["view"]), row["events_bytes"]
    except (ValueError, TypeError, KeyError):
        # Written by another version: to be derived from the events again.
        view, events_bytes = JobView(state=JobState(row["state"])), -1
    job = Job(request, view, cancel_requested=bool(row["cancel_requested"]))
    return JobRow(job, events_bytes)

"""``multigrain-server --rebuild-index``: the index anew, from the job folders."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from multigrain.errors import MultigrainError
from multigrain_server.config import ServerConfig
from multigrain_server.data_dir import DataDir, DataDirError
from multigrain_server.database import Database, put_aside
from multigrain_server.jobs.recovery import Indexing, index_folders
from multigrain_server.jobs.store import SCHEMA, JobStore


def rebuild_index(config: ServerConfig) -> str:
    """Puts the old index aside and writes a new one.

    Returns:
        What was done, in lines for a person.

    Raises:
        DataDirError: if a daemon uses the data directory, or the index cannot be written.
    """
    data = DataDir(config.data_dir)
    try:
        old = put_aside(data.database, "old") if data.database.exists() else None
        with closing(Database(data.database, [SCHEMA])) as database:
            store = JobStore(database)
            done = index_folders(data.jobs, store)
            counts = store.counts()
    except (sqlite3.Error, MultigrainError) as error:
        raise DataDirError(f"{data.database} cannot be written: {error}") from error
    finally:
        data.close()
    return "\n".join(_lines(done, counts, old.name if old is not None else ""))


def _lines(done: Indexing, counts: dict[str, int], old: str) -> list[str]:
    states = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
    lines = [f"{len(done.added)} jobs indexed from their folders" + (f": {states}" * bool(states))]
    lines += [f"left alone: jobs/{name}: {why}" for name, why in done.refused.items()]
    if old:
        lines.append(f"the old index is {old}, and may be removed")
    return lines

"""What a restarted daemon must know of its models: loaded ones, aliases, the default."""

from __future__ import annotations

from dataclasses import dataclass

from multigrain_server.database import Database
from multigrain_server.models.reference import ModelVersion

SCHEMA = """
CREATE TABLE IF NOT EXISTS loaded_models (
  name TEXT NOT NULL,
  version INTEGER NOT NULL,
  runtime TEXT NOT NULL,
  PRIMARY KEY (name, version)
);
CREATE TABLE IF NOT EXISTS model_aliases (
  alias TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  version INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS default_model (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  reference TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class LoadedRow:
    """A model that answered when it was last heard of; ``runtime`` is what was asked for."""

    version: ModelVersion
    runtime: str


class ModelStore:
    """Tables of :data:`SCHEMA`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def loaded(self) -> list[LoadedRow]:
        """In the order in which they were loaded."""
        rows = self._database.execute(
            "SELECT name, version, runtime FROM loaded_models ORDER BY rowid"
        )
        return [
            LoadedRow(ModelVersion(row["name"], row["version"]), row["runtime"]) for row in rows
        ]

    def has_loaded(self, version: ModelVersion) -> bool:
        return any(row.version == version for row in self.loaded())

    def add_loaded(self, row: LoadedRow) -> None:
        self._database.execute(
            "INSERT INTO loaded_models (name, version, runtime) VALUES (?, ?, ?) "
            "ON CONFLICT (name, version) DO UPDATE SET runtime = excluded.runtime",
            (row.version.name, row.version.version, row.runtime),
        )

    def remove_loaded(self, version: ModelVersion) -> None:
        self._database.execute(
            "DELETE FROM loaded_models WHERE name = ? AND version = ?",
            (version.name, version.version),
        )

    def aliases(self) -> dict[str, ModelVersion]:
        rows = self._database.execute("SELECT alias, name, version FROM model_aliases")
        return {row["alias"]: ModelVersion(row["name"], row["version"]) for row in rows}

    def set_alias(self, alias: str, version: ModelVersion) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO model_aliases (alias, name, version) VALUES (?, ?, ?)",
            (alias, version.name, version.version),
        )

    def remove_alias(self, alias: str) -> bool:
        """Whether there was one."""
        cursor = self._database.execute("DELETE FROM model_aliases WHERE alias = ?", (alias,))
        return cursor.rowcount > 0

    def default(self) -> str:
        """The reference that was made the default: a name, "name@version" or an alias; or ""."""
        row = self._database.execute("SELECT reference FROM default_model").fetchone()
        return str(row["reference"]) if row is not None else ""

    def set_default(self, reference: str) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO default_model (id, reference) VALUES (1, ?)", (reference,)
        )

    def clear_default(self) -> None:
        self._database.execute("DELETE FROM default_model")

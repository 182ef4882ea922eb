"""What a restarted daemon must know of its models: loaded ones, aliases, the default."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import Field, ValidationError, field_validator

from multigrain.engine.settings import RUNTIMES
from multigrain.errors import MultigrainError
from multigrain.specs.base import Spec
from multigrain.storage import remedy, replace_file
from multigrain_server.data_dir import DataDirError
from multigrain_server.models.reference import ModelReference, ModelVersion
from multigrain_server.storage_errors import stored

_LOG = logging.getLogger(__name__)


class LoadedRow(Spec):
    """A model that answered when it was last heard of; ``runtime`` is what was asked for."""

    version: ModelVersion
    runtime: str

    @field_validator("version")
    @classmethod
    def _named(cls, version: ModelVersion) -> ModelVersion:
        return _checked(version)

    @field_validator("runtime")
    @classmethod
    def _known(cls, runtime: str) -> str:
        if runtime not in ("", *RUNTIMES):
            raise ValueError(f"{runtime[:80]!r} is not a runtime")
        return runtime


class _Serving(Spec):
    """Content of the file. ``loaded`` is in the order of loading; ``default`` is a reference."""

    loaded: tuple[LoadedRow, ...] = ()
    aliases: dict[str, ModelVersion] = Field(default_factory=dict)
    default: str = ""

    @field_validator("aliases")
    @classmethod
    def _named(cls, aliases: dict[str, ModelVersion]) -> dict[str, ModelVersion]:
        for alias, version in aliases.items():
            _checked(ModelVersion(alias, 1))
            _checked(version)
        return aliases

    @field_validator("default")
    @classmethod
    def _reference(cls, default: str) -> str:
        if default:
            _parsed(default)
        return default


class ModelStore:
    """``<data-dir>/serving.json``, written as a whole with each change.

    What changes something raises MultigrainError STORAGE if it cannot be written, and has then
    changed nothing.

    Args:
        path: the file. One that is damaged is put aside, and nothing is loaded.

    Raises:
        DataDirError: if this process may not read it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state = _read(path)

    def loaded(self) -> list[LoadedRow]:
        """In the order in which they were loaded."""
        return list(self._state.loaded)

    def has_loaded(self, version: ModelVersion) -> bool:
        return any(row.version == version for row in self._state.loaded)

    def add_loaded(self, row: LoadedRow) -> None:
        """Adds a model, or changes its runtime and leaves it in its place."""
        rows = [row if known.version == row.version else known for known in self._state.loaded]
        self._change(loaded=tuple(rows if row in rows else [*rows, row]))

    def remove_loaded(self, version: ModelVersion) -> None:
        self._change(loaded=tuple(row for row in self._state.loaded if row.version != version))

    def aliases(self) -> dict[str, ModelVersion]:
        return dict(self._state.aliases)

    def set_alias(self, alias: str, version: ModelVersion) -> None:
        self._change(aliases={**self._state.aliases, alias: version})

    def remove_alias(self, alias: str) -> bool:
        """Whether there was one."""
        known = self.aliases()
        found = known.pop(alias, None) is not None
        self._change(aliases=known)
        return found

    def default(self) -> str:
        """The reference that was made the default: a name, "name@version" or an alias; or ""."""
        return self._state.default

    def set_default(self, reference: str) -> None:
        self._change(default=reference)

    def clear_default(self) -> None:
        self._change(default="")

    def _change(self, **changed: object) -> None:
        state = self._state.model_copy(update=changed)
        if state == self._state:
            return
        with stored("what is loaded cannot be noted", "the data directory"):
            replace_file(self._path, state.model_dump_json(indent=1).encode() + b"\n")
        self._state = state


def _read(path: Path) -> _Serving:
    try:
        return _Serving.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return _Serving()
    except PermissionError as error:
        # Nothing is wrong with it: put aside, it would be lost.
        raise DataDirError(
            f"{path} cannot be read: {error.strerror}; " + remedy(error, "read it", "")
        ) from error
    except (OSError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        aside = path.with_name(f"{path.name}.damaged")
        _LOG.error(
            "%s is refused: %s. It is put aside as %s: load the models, and set aliases, again",
            path.name,
            reason,
            aside.name,
        )
        path.replace(aside)
        return _Serving()


def _checked(version: ModelVersion) -> ModelVersion:
    _parsed(str(version))
    return version


def _parsed(text: str) -> ModelReference:
    try:
        return ModelReference.parse(text)
    except MultigrainError as error:
        raise ValueError(error.message) from error

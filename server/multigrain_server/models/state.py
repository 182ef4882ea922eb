"""``serving.json``: loaded models, aliases and the default model, for the next start."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import structlog
from pydantic import Field, ValidationError, field_validator

from multigrain.engine.settings import RUNTIMES
from multigrain.errors import MultigrainError
from multigrain.files import MAX_DOCUMENT_BYTES, read_bytes
from multigrain.specs.base import Spec
from multigrain.storage import os_error_hint, replace_file
from multigrain_server.data_dir import DataDirError
from multigrain_server.models.registry import ModelReference, ModelVersion
from multigrain_server.storage_errors import storage_errors

_log = structlog.get_logger(__name__)


class LoadedRow(Spec):
    """A loaded model.

    Attributes:
        version: of the model.
        runtime: the one that was requested.
        served: the one that was loaded, and how it was chosen; for ``multigrain-server doctor``.
    """

    version: ModelVersion
    runtime: str
    served: str = ""

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


class _Content(Spec):
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


class ServingState:
    """``<data-dir>/serving.json``, written as a whole with each change.

    A method that changes something raises MultigrainError STORAGE if the file cannot be written;
    nothing has changed then.

    Args:
        path: the file. A damaged one is moved aside, and nothing is loaded.

    Raises:
        DataDirError: if this process may not read it.

    Attributes:
        aliases: the version that each alias points at.
        default: the default model: a name, "name@version" or an alias; "" if none was set.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._set(_read(path))

    @staticmethod
    def last_loaded(path: Path) -> tuple[LoadedRow, ...]:
        """The loaded models in a file, which stays as it is. Empty if it cannot be read."""
        try:
            content = read_bytes(path, max_bytes=MAX_DOCUMENT_BYTES)
            return _Content.model_validate_json(content).loaded
        except (OSError, ValidationError):
            return ()

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

    def set_alias(self, alias: str, version: ModelVersion) -> None:
        self._change(aliases={**self.aliases, alias: version})

    def remove_alias(self, alias: str) -> bool:
        """Returns whether there was one."""
        known = dict(self.aliases)
        found = known.pop(alias, None) is not None
        self._change(aliases=known)
        return found

    def set_default(self, reference: str) -> None:
        self._change(default=reference)

    def clear_default(self) -> None:
        self._change(default="")

    def _change(self, **changed: object) -> None:
        state = self._state.model_copy(update=changed)
        if state == self._state:
            return
        with storage_errors("serving.json cannot be written", "the data directory"):
            replace_file(self._path, state.model_dump_json(indent=1).encode() + b"\n")
        self._set(state)

    def _set(self, state: _Content) -> None:
        self._state = state
        # Plain attributes: every request reads them.
        self.aliases: Mapping[str, ModelVersion] = state.aliases
        self.default = state.default


def _read(path: Path) -> _Content:
    try:
        return _Content.model_validate_json(read_bytes(path, max_bytes=MAX_DOCUMENT_BYTES))
    except FileNotFoundError:
        return _Content()
    except PermissionError as error:
        # Nothing is wrong with the file: moved aside, it would be lost.
        raise DataDirError(
            f"{path} cannot be read: {error.strerror}; " + os_error_hint(error, "read it", "")
        ) from error
    except (OSError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        aside = path.with_name(f"{path.name}.damaged")
        if os.path.lexists(aside):
            aside = aside.with_name(f"{aside.name}-{time.time_ns()}")
        _log.error(
            "damaged file moved aside: load the models, and set aliases, again",
            file=path.name,
            moved_to=aside.name,
            reason=reason,
        )
        path.rename(aside)
        return _Content()


def _checked(version: ModelVersion) -> ModelVersion:
    _parsed(str(version))
    return version


def _parsed(text: str) -> ModelReference:
    try:
        return ModelReference.parse(text)
    except MultigrainError as error:
        raise ValueError(error.message) from error

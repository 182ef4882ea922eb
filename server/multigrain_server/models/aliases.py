"""Who else needs a model: jobs, of which this package knows no more."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.models.catalog import ModelCatalogue
from multigrain_server.models.loaded_model import ModelState
from multigrain_server.models.reference import ModelReference, ModelVersion, check_name
from multigrain_server.models.registry import BundleRegistry
from multigrain_server.models.router import ModelRouter
from multigrain_server.models.state import ModelStore


class ModelUsers(Protocol):
    """Answers are job ids, "" for none."""

    def reader_of(self, folder: Path) -> str:
        """A job that reads what is in a folder."""
        ...

    def exporter_of(self, name: str) -> str:
        """A job that will write a model of this name."""
        ...


class NoUsers:
    """Where there are no jobs."""

    def reader_of(self, folder: Path) -> str:
        return ""

    def exporter_of(self, name: str) -> str:
        return ""


# MERGED: Aliases: names of the user's own for loaded versions.


class ModelLabels:
    """Sets and removes them. Nothing here waits, so that what is checked holds when it is done.

    Args:
        users: who else may want a name.
        on_demand: whether what is not loaded may be pointed at, because a request loads it.
    """

    def __init__(
        self,
        store: ModelStore,
        router: ModelRouter,
        bundles: BundleRegistry,
        catalogue: ModelCatalogue,
        users: ModelUsers,
        *,
        on_demand: bool,
    ) -> None:
        self._store = store
        self._router = router
        self._bundles = bundles
        self._catalogue = catalogue
        self._users = users
        self._on_demand = on_demand

    def set(self, alias: str, model: str) -> str:
        """Points ``alias`` at a version; "" removes it. Returns "name@version" or "".

        Raises:
            MultigrainError: INVALID_FIELD, NOT_FOUND, WRONG_STATE (not loaded).
        """
        check_name(alias, "alias")
        if not model:
            if not self._store.remove_alias(alias):
                raise MultigrainError(ErrorKind.NOT_FOUND, f"no alias {alias}")
            self._router.refresh()
            return ""
        if self._bundles.has_name(alias):
            raise MultigrainError.field("alias", f"{alias} is the name of a model")
        exporter = self._users.exporter_of(alias)
        if exporter:
            raise MultigrainError.field(
                "alias", f"{alias} is the name of a model that job {exporter} will write"
            )
        version = self._target(model)
        self._store.set_alias(alias, version)
        self._router.refresh()
        return str(version)

    def refuse(self, version: ModelVersion, verb: str) -> None:
        """Raises WRONG_STATE while an alias points at the version."""
        aliases = self._router.aliases_of(version)
        if aliases:
            raise MultigrainError(
                ErrorKind.WRONG_STATE,
                f"{version} cannot be {verb} while alias {', '.join(aliases)} points at it: "
                "SetAlias to another version, or to nothing, first",
            )

    def _answers(self, version: ModelVersion) -> bool:
        # Noted is what will stay: an engine that has just started may yet be found too large.
        loading = self._router.loaded[version].state is ModelState.LOADING
        return not loading and self._store.has_loaded(version)

    def _target(self, model: str) -> ModelVersion:
        version = self._router.version_of(ModelReference.parse(model))
        if version is not None and self._answers(version):
            return version
        known = self._catalogue.find(model).version
        if not self._on_demand:
            raise MultigrainError(
                ErrorKind.WRONG_STATE,
                f"{known} is not loaded, and an alias must always answer: LoadModel first",
            )
        return known

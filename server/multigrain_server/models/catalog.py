"""What a caller is told about a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from multigrain.errors import MultigrainError
from multigrain_server.models.loaded_model import LoadedModel, ModelState
from multigrain_server.models.reference import ModelReference, ModelVersion, check_name
from multigrain_server.models.registry import BundleEntry, BundleRegistry
from multigrain_server.models.router import ModelRouter


@dataclass(frozen=True)
class ModelView:
    """A version on disk and, if it is loaded, what serves it."""

    entry: BundleEntry
    state: ModelState = ModelState.UNLOADED
    message: str = ""
    aliases: tuple[str, ...] = ()
    runtime: str = ""
    max_batch: int = 0
    load_seconds: float = 0.0
    restarts: int = 0


@dataclass(frozen=True)
class ModelPage:
    """A page of models in order of name and version; ``next_token`` "" = the last page."""

    models: tuple[ModelView, ...]
    next_token: str
    aliases: dict[str, str]
    default_model: str


# MERGED: What there is: bundles on disk, with what is loaded of them.


_DEFAULT_PAGE = 50
_MAX_PAGE = 1000


class ModelCatalogue:
    """Finds and describes models.

    Args:
        bundles: what is on disk.
        router: what is loaded, and under which names.
        max_batch: of every engine, in images.
    """

    def __init__(self, bundles: BundleRegistry, router: ModelRouter, max_batch: int) -> None:
        self._bundles = bundles
        self._router = router
        self._max_batch = max_batch

    def find(self, model: str) -> BundleEntry:
        """The bundle of "name" (newest on disk), "name@version" or an alias. Raises NOT_FOUND."""
        reference = ModelReference.parse(model)
        return self._bundles.find(self._router.target(reference))

    @property
    def loaded(self) -> Mapping[ModelVersion, LoadedModel]:
        """What is loaded or being loaded, in that order."""
        return self._router.loaded

    def is_alias(self, name: str) -> bool:
        """Whether a name means another model's version."""
        return name in self._router.aliases

    def view(self, entry: BundleEntry) -> ModelView:
        """A bundle and its engine's state."""
        version = entry.version
        aliases = self._router.aliases_of(version)
        model = self._router.loaded.get(version) or self._router.draining.get(version)
        if model is None:
            return ModelView(entry, aliases=aliases)
        return ModelView(
            entry,
            state=model.state,
            message=model.message,
            aliases=aliases,
            runtime=model.runtime_description,
            max_batch=self._max_batch,
            load_seconds=model.load_seconds,
            restarts=model.restarts,
        )

    def views(self) -> list[ModelView]:
        """Everything, in order of name and version."""
        return [self.view(entry) for entry in self._bundles.entries().values()]

    def default_state(self) -> ModelState | None:
        """Of the model that answers a request which names none; None if none is loaded."""
        version = self._router.default_version()
        return self._router.loaded[version].state if version is not None else None

    def page(
        self, name: str = "", *, loaded_only: bool = False, size: int = 0, token: str = ""
    ) -> ModelPage:
        """Models in order of name and version, after the one that ``token`` names."""
        if size > _MAX_PAGE:
            raise MultigrainError.field("page_size", f"{size} is too many: at most {_MAX_PAGE}")
        if name:
            check_name(name, "name")
        after: ModelVersion | None = None
        if token:
            reference = ModelReference.parse(token, "page_token")
            if reference.version is None:
                raise MultigrainError.field("page_token", "is not one that this server gave out")
            after = ModelVersion(reference.name, reference.version)
        entries = [
            entry
            for version, entry in self._bundles.entries().items()
            if (not name or version.name == name)
            and (not loaded_only or version in self._router.loaded)
            and (after is None or version > after)
        ]
        size = size or _DEFAULT_PAGE
        default = self._router.default_version()
        return ModelPage(
            models=tuple(self.view(entry) for entry in entries[:size]),
            next_token=str(entries[size - 1].version) if len(entries) > size else "",
            aliases={alias: str(version) for alias, version in self._router.aliases.items()},
            default_model=str(default) if default is not None else "",
        )

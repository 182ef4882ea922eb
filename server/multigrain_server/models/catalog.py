"""Which models there are, which versions are loaded, and which of them a request means."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.models.loaded_model import LoadedModel, ModelState
from multigrain_server.models.registry import (
    BundleEntry,
    BundleRegistry,
    ModelReference,
    ModelVersion,
    RefusedBundle,
    check_name,
)
from multigrain_server.models.state import ServingState
from multigrain_server.paging import PageToken, page_size

_RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class ModelView:
    """A version on disk and, if it is loaded, its engine."""

    entry: BundleEntry
    state: ModelState = ModelState.UNLOADED
    message: str = ""
    aliases: tuple[str, ...] = ()
    runtime: str = ""
    runtime_name: str = ""
    runtime_speeds: Mapping[str, float] = field(default_factory=dict)
    max_batch: int = 0
    load_seconds: float = 0.0
    restarts: int = 0


@dataclass(frozen=True)
class ModelPage:
    """A page of models in order of name and version; ``next_token`` "" = the last page.

    ``refused`` are the folders in between that cannot be used.
    """

    models: tuple[ModelView, ...]
    refused: tuple[RefusedBundle, ...]
    next_token: str
    aliases: dict[str, str]
    default_model: str


class ModelCatalog:
    """Finds and describes models, and owns the table of loaded ones.

    An alias goes before a name. A name means its newest loaded version. No name means the
    default model: the one that was made the default, or else the first that was loaded.

    Args:
        bundles: the models on disk.
        state: aliases and the default model.
        max_batch: images in a batch of any engine.
    """

    def __init__(self, bundles: BundleRegistry, state: ServingState, max_batch: int) -> None:
        self._bundles = bundles
        self._state = state
        self._max_batch = max_batch
        # In the order in which they were loaded.
        self._loaded: dict[ModelVersion, LoadedModel] = {}
        # They take no new requests, and finish those in flight.
        self._draining: dict[ModelVersion, LoadedModel] = {}
        #: Models that are loaded or being loaded, in that order.
        self.loaded: Mapping[ModelVersion, LoadedModel] = MappingProxyType(self._loaded)

    # Requests

    def route(self, text: str) -> LoadedModel:
        """The model that answers a request; counts as its use.

        Args:
            text: "name", "name@version", an alias, or "" for the default model.

        Raises:
            MultigrainError: INVALID_FIELD, NOT_FOUND, WRONG_STATE (not loaded), UNAVAILABLE
                (loading).
        """
        if text:
            reference = ModelReference.parse(text)
            version = self.loaded_version(reference)
            if version is None:
                known = self._bundles.find(self._resolve(reference))  # or NOT_FOUND
                raise MultigrainError(
                    ErrorKind.WRONG_STATE, f"{known.version} is not loaded: LoadModel first"
                )
        else:
            version = self.default_version()
            if version is None:
                raise MultigrainError(ErrorKind.NOT_FOUND, "no model is loaded: LoadModel first")
        model = self._loaded[version]
        if model.state is ModelState.LOADING:
            raise MultigrainError(
                ErrorKind.UNAVAILABLE,
                f"{version} is still loading: try again in a moment",
                retry_after=_RETRY_SECONDS,
            )
        model.last_used = time.monotonic()
        return model

    def loaded_version(self, reference: ModelReference) -> ModelVersion | None:
        """The loaded version that is meant; None if none is. Those that answer go before those
        that are still loading."""
        target = self._resolve(reference)
        if target.version is not None:
            version = ModelVersion(target.name, target.version)
            return version if version in self._loaded else None
        candidates = [
            (model.state is not ModelState.LOADING, version)
            for version, model in self._loaded.items()
            if version.name == target.name
        ]
        return max(candidates)[1] if candidates else None

    def default_version(self) -> ModelVersion | None:
        """The version that answers a request which names none; None if none is loaded."""
        if len(self._loaded) == 1:
            return next(iter(self._loaded))
        if self._state.default:
            version = self.loaded_version(ModelReference.parse(self._state.default))
            if version is not None:
                return version
        answering = [v for v, m in self._loaded.items() if m.state is not ModelState.LOADING]
        first = next(iter(answering or self._loaded), None)
        return self.loaded_version(ModelReference(first.name)) if first is not None else None

    def default_state(self) -> ModelState | None:
        """State of the default model; None if none is loaded."""
        version = self.default_version()
        return self._loaded[version].state if version is not None else None

    def is_alias(self, name: str) -> bool:
        return name in self._state.aliases

    def aliases_of(self, version: ModelVersion) -> tuple[str, ...]:
        return tuple(sorted(a for a, target in self._state.aliases.items() if target == version))

    def pinned(self, version: ModelVersion) -> bool:
        """Whether an alias, or a default that states a version, points at it."""
        return bool(self.aliases_of(version)) or self._state.default == str(version)

    def older(self, version: ModelVersion) -> list[ModelVersion]:
        """Older loaded versions of the same model that are not pinned."""
        return [
            other
            for other in self._loaded
            if other.name == version.name
            and other.version < version.version
            and not self.pinned(other)
        ]

    # Descriptions

    def find(self, model: str) -> BundleEntry:
        """The bundle of "name" (newest on disk), "name@version" or an alias. Raises NOT_FOUND."""
        return self._bundles.find(self._resolve(ModelReference.parse(model)))

    def bundle_path(self, model: str) -> Path:
        """Its folder. Raises NOT_FOUND."""
        return self.find(model).path

    def view(self, model: str) -> ModelView:
        """As :meth:`find`, with the state of its engine. Raises NOT_FOUND."""
        return self.describe(self.find(model))

    def refused(self, model: str) -> RefusedBundle | None:
        """The folder of "name@version" if it cannot be used, else None."""
        reference = ModelReference.parse(model)
        if reference.version is None:
            return None
        self._bundles.entries()
        return self._bundles.refused().get(ModelVersion(reference.name, reference.version))

    def describe(self, entry: BundleEntry) -> ModelView:
        """A bundle with the state of its engine."""
        version = entry.version
        aliases = self.aliases_of(version)
        model = self._loaded.get(version) or self._draining.get(version)
        if model is None:
            return ModelView(entry, aliases=aliases)
        return ModelView(
            entry,
            state=model.state,
            message=model.message,
            aliases=aliases,
            runtime=model.runtime_description,
            runtime_name=model.runtime_name,
            runtime_speeds=model.runtime_speeds,
            max_batch=self._max_batch,
            load_seconds=model.load_seconds,
            restarts=model.restarts,
        )

    def views(self) -> list[ModelView]:
        """All versions on disk, in order of name and version."""
        return [self.describe(entry) for entry in self._bundles.entries().values()]

    def page(
        self, name: str = "", *, loaded_only: bool = False, size: int = 0, token: str = ""
    ) -> ModelPage:
        """Models in order of name and version, after the last one of the previous page."""
        size = page_size(size)
        if name:
            check_name(name, "name")
        query = f"{name} {loaded_only}"
        after = PageToken.decode(token, query, (str, int))
        entries = self._bundles.entries()
        refused = {} if loaded_only else self._bundles.refused()
        versions = [
            version
            for version in sorted({*entries, *refused})
            if (not name or version.name == name)
            and (not loaded_only or version in self._loaded)
            and (after is None or (version.name, version.version) > after.position)
        ]
        more = ""
        if len(versions) > size:
            last = versions[size - 1]
            more = PageToken((last.name, last.version)).encode(query)
            versions = versions[:size]
        default = self.default_version()
        return ModelPage(
            models=tuple(self.describe(entries[v]) for v in versions if v in entries),
            refused=tuple(refused[v] for v in versions if v not in entries),
            next_token=more,
            aliases={alias: str(version) for alias, version in self._state.aliases.items()},
            default_model=str(default) if default is not None else "",
        )

    # Changes, for ModelManager

    def add(self, model: LoadedModel) -> None:
        """Requests may mean it from now on."""
        self._loaded[model.entry.version] = model

    def begin_draining(self, model: LoadedModel) -> None:
        """No request means it from now on."""
        # It is not there any more if the daemon stops while it is being loaded.
        self._loaded.pop(model.entry.version, None)
        self._draining[model.entry.version] = model

    def end_draining(self, model: LoadedModel) -> bool:
        """Forgets a model that has ended; whether no other one of its version drains."""
        version = model.entry.version
        last = self._draining.get(version) is model
        if last:
            del self._draining[version]
        return last

    def running(self) -> list[LoadedModel]:
        """All models that have an engine: loaded, being loaded, or draining."""
        return [*self._loaded.values(), *self._draining.values()]

    def clear(self) -> None:
        """Forgets all loaded models, which have ended."""
        self._loaded.clear()

    def _resolve(self, reference: ModelReference) -> ModelReference:
        """``reference``, or what it is an alias of."""
        if reference.version is None and reference.name in self._state.aliases:
            version = self._state.aliases[reference.name]
            return ModelReference(version.name, version.version)
        return reference

"""From what a request calls a model to the version that answers."""

from __future__ import annotations

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.models.loaded_model import LoadedModel, ModelState
from multigrain_server.models.reference import ModelReference, ModelVersion
from multigrain_server.models.registry import BundleRegistry
from multigrain_server.models.state import ModelStore

_RETRY_SECONDS = 1.0


class ModelRouter:
    """The loaded models, and which of them a name means.

    An alias goes before a name; a name means its newest loaded version; nothing at all means
    the default model: the one made so, or else the first that was loaded.
    """

    def __init__(self, store: ModelStore, registry: BundleRegistry) -> None:
        self._store = store
        self._registry = registry
        #: In the order in which they were loaded.
        self.loaded: dict[ModelVersion, LoadedModel] = {}
        #: Out of the routes, finishing what they have.
        self.draining: dict[ModelVersion, LoadedModel] = {}
        self.refresh()

    def refresh(self) -> None:
        """Reads aliases and the default anew, after they have been changed."""
        self.aliases = self._store.aliases()
        self.default_reference = self._store.default()

    def route(self, text: str) -> LoadedModel:
        """The model that answers a request.

        Raises:
            MultigrainError: NOT_FOUND, WRONG_STATE (known, not loaded), UNAVAILABLE (loading).
        """
        if not text:
            return self._default()
        reference = ModelReference.parse(text)
        version = self.version_of(reference)
        if version is not None:
            model = self.loaded[version]
            if model.state is ModelState.LOADING:
                raise _loading(str(version))
            return model
        # Raises NOT_FOUND with what there is.
        known = self._registry.find(self.target(reference))
        raise MultigrainError(
            ErrorKind.WRONG_STATE, f"{known.version} is not loaded: LoadModel first"
        )

    def unloaded(self, text: str) -> ModelVersion | None:
        """The version on disk that a request means if none that it could mean is loaded."""
        text = text or self.default_reference
        if not text:
            return None
        reference = ModelReference.parse(text)
        if self.version_of(reference) is not None:
            return None
        return self._registry.find(self.target(reference)).version

    def target(self, reference: ModelReference) -> ModelReference:
        """``reference`` with an alias followed."""
        if reference.version is None and reference.name in self.aliases:
            version = self.aliases[reference.name]
            return ModelReference(version.name, version.version)
        return reference

    def version_of(self, reference: ModelReference) -> ModelVersion | None:
        """The loaded version that is meant; None if none is. Those that answer go before
        those that are still loading."""
        target = self.target(reference)
        if target.version is not None:
            version = ModelVersion(target.name, target.version)
            return version if version in self.loaded else None
        candidates = [
            (model.state is not ModelState.LOADING, version)
            for version, model in self.loaded.items()
            if version.name == target.name
        ]
        return max(candidates)[1] if candidates else None

    def default_version(self) -> ModelVersion | None:
        """The version that answers a request which names none; None if none is loaded."""
        if self.default_reference:
            version = self.version_of(ModelReference.parse(self.default_reference))
            if version is not None:
                return version
        answering = [v for v, m in self.loaded.items() if m.state is not ModelState.LOADING]
        first = next(iter(answering or self.loaded), None)
        return self.version_of(ModelReference(first.name)) if first is not None else None

    def aliases_of(self, version: ModelVersion) -> tuple[str, ...]:
        return tuple(sorted(alias for alias, target in self.aliases.items() if target == version))

    def older(self, version: ModelVersion) -> list[ModelVersion]:
        """Older loaded versions of the same model that neither an alias nor the default keeps."""
        return [
            other
            for other in self.loaded
            if other.name == version.name
            and other.version < version.version
            and not self.pinned(other)
        ]

    def pinned(self, version: ModelVersion) -> bool:
        """Whether an alias, or a default that states a version, points at it."""
        return bool(self.aliases_of(version)) or self.default_reference == str(version)

    def _default(self) -> LoadedModel:
        version = self.default_version()
        if version is None:
            raise MultigrainError(ErrorKind.NOT_FOUND, "no model is loaded: LoadModel first")
        model = self.loaded[version]
        if model.state is ModelState.LOADING:
            raise _loading(str(version))
        return model


def _loading(version: str) -> MultigrainError:
    return MultigrainError(
        ErrorKind.UNAVAILABLE,
        f"{version} is still loading: try again in a moment",
        retry_after=_RETRY_SECONDS,
    )

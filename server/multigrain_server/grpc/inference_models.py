"""How the Open Inference Protocol names models: a name, and a version beside it."""

from __future__ import annotations

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.models.loaded_model import LoadedModel, ModelState
from multigrain_server.models.manager import ModelManager
from multigrain_server.models.reference import ModelReference, ModelVersion
from multigrain_server.models.view import ModelView

_NOT_LOADED = (ErrorKind.NOT_FOUND, ErrorKind.WRONG_STATE, ErrorKind.UNAVAILABLE)


class InferenceModels:
    """Finds models by the protocol's names."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager

    def reference(self, name: str, version: str) -> str:
        """ "name", "name@version", or "" for the default model.

        Raises:
            MultigrainError: INVALID_FIELD; NOT_FOUND for an alias of another version.
        """
        if not version:
            return name
        if not name:
            raise MultigrainError.field("model_version", "needs a model_name")
        known = ModelReference.parse(name, "model_name")
        asked = ModelReference.parse(f"{known.name}@{version}", "model_version")
        if known.version not in (None, asked.version):
            raise MultigrainError.field("model_version", f"is {version}, but the name says {known}")
        if self._manager.catalogue.is_alias(known.name):
            target = self._manager.catalogue.find(known.name).version
            if target.version != asked.version:
                raise MultigrainError(
                    ErrorKind.NOT_FOUND, f"{known.name} is an alias of {target}, not of {asked}"
                )
            return str(target)
        return str(asked)

    def ready(self, name: str, version: str) -> bool:
        """Whether it answers; False as well for one that does not exist."""
        try:
            return self._manager.route(self.reference(name, version)).state is ModelState.READY
        except MultigrainError as error:
            if error.kind in _NOT_LOADED:
                return False
            raise

    def view(self, name: str, version: str) -> ModelView:
        """Of a name, the version that answers; of one that is not loaded, the newest on disk.

        Raises:
            MultigrainError: INVALID_FIELD, NOT_FOUND.
        """
        text = self.reference(name, version)
        catalogue = self._manager.catalogue
        try:
            return catalogue.view(self._manager.route(text).entry)
        except MultigrainError as error:
            if not text or error.kind not in _NOT_LOADED:
                raise
            return catalogue.view(catalogue.find(text))

    def views(self) -> list[ModelView]:
        """Every version on disk."""
        return self._manager.catalogue.views()

    def versions(self, name: str) -> list[int]:
        """Of a model, on disk."""
        return [
            view.entry.version.version for view in self.views() if view.entry.version.name == name
        ]

    def loaded(self, name: str, version: str) -> dict[ModelVersion, LoadedModel]:
        """All that are loaded; or those of a name; or the one of a version or an alias.

        Raises:
            MultigrainError: INVALID_FIELD, NOT_FOUND, WRONG_STATE if none of these is loaded.
        """
        text = self.reference(name, version)
        loaded = self._manager.catalogue.loaded
        if not text:
            return dict(loaded)
        found = {key: model for key, model in loaded.items() if key.name == text}
        if found:
            return found
        model = self._manager.route(text)
        return {model.entry.version: model}

    async def unload(self, name: str) -> None:
        """Unloads a version, or every loaded one of a name; harmless if none is loaded.

        Raises:
            MultigrainError: INVALID_FIELD, NOT_FOUND; WRONG_STATE while an alias points at it.
        """
        versions = [key for key in self._manager.catalogue.loaded if key.name == name]
        for model in [str(key) for key in versions] or [name]:
            await self._manager.unload(model)

"""Tells health checks and metrics what is true of the models."""

from __future__ import annotations

from collections.abc import Callable

from multigrain_server.models.catalogue import ModelCatalogue
from multigrain_server.models.loaded_model import ModelState
from multigrain_server.models.registry import BundleRegistry
from multigrain_server.models.router import ModelRouter
from multigrain_server.serving.metrics import ServingMetrics

#: Health name of the service; it serves while the default model answers.
EMBEDDING_SERVICE = "multigrain.v1.EmbeddingService"
#: Health name of each model is this followed by its name.
MODEL_HEALTH_PREFIX = f"{EMBEDDING_SERVICE}/"


class ModelAnnouncer:
    """Compares with what was told last, and tells the difference."""

    def __init__(
        self,
        bundles: BundleRegistry,
        router: ModelRouter,
        catalogue: ModelCatalogue,
        metrics: ServingMetrics,
        on_health: Callable[[str, bool], None],
    ) -> None:
        self._bundles = bundles
        self._router = router
        self._catalogue = catalogue
        self._metrics = metrics
        self._on_health = on_health
        self._health: dict[str, bool] = {}

    def publish(self) -> None:
        """To be called after each change."""
        for entry in self._bundles.entries().values():
            state = self._catalogue.view(entry).state
            self._metrics.model_state(entry.version.name, entry.version.version, state.value)
        loaded = self._router.loaded
        now = dict.fromkeys(self._health, False)
        for version, model in loaded.items():
            name = MODEL_HEALTH_PREFIX + version.name
            now[name] = now.get(name, False) or model.state is ModelState.READY
        default = self._router.default_version()
        now[EMBEDDING_SERVICE] = default is not None and loaded[default].state is ModelState.READY
        for name, serving in now.items():
            if self._health.get(name) != serving:
                self._health[name] = serving
                self._on_health(name, serving)

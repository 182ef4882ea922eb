"""What a caller is told about a model."""

from __future__ import annotations

from dataclasses import dataclass

from multigrain_server.models.loaded_model import ModelState
from multigrain_server.models.registry import BundleEntry


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

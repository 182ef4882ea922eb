"""The description of one checkpoint folder."""

from __future__ import annotations

from pydantic import Field

from multigrain.data.fingerprint import DatasetFingerprint
from multigrain.specs.base import Spec
from multigrain.specs.training import ModelSpec
from multigrain.storage import FileEntry


class CheckpointManifest(Spec):
    """``manifest.json`` of ``checkpoints/step-00001200/``.

    The checkpoint's files are ``model.safetensors`` (weights and BatchNorm statistics by
    MindSpore parameter name) and ``state.safetensors`` (optimizer state, one flat namespace).

    Attributes:
        position: scalars that are needed to resume the run.
        dataset: fingerprint of the training set; None if unknown.
    """

    format_version: int = 1
    step: int
    epoch: int
    model: ModelSpec
    labels: tuple[str, ...] = ()
    files: dict[str, FileEntry] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    position: dict[str, int | float | str] = Field(default_factory=dict)
    job_id: str = ""
    create_time: str = ""
    dataset: DatasetFingerprint | None = None

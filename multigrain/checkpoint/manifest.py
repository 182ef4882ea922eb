"""The description of one checkpoint folder."""

from __future__ import annotations

from pydantic import Field

from multigrain.data.fingerprint import DatasetFingerprint
from multigrain.manifests import (
    MAX_CHECKPOINT_CLASSES,
    Count,
    FileName,
    Labels,
    Long,
    Metrics,
    Text,
    parse_manifest,
)
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

    format_version: Count = 1
    step: Long
    epoch: Count
    model: ModelSpec
    labels: Labels = ()
    files: dict[FileName, FileEntry] = Field(default_factory=dict, max_length=64)
    metrics: Metrics = Field(default_factory=dict)
    position: dict[str, int | float | str] = Field(default_factory=dict)
    job_id: Text = ""
    create_time: Text = ""
    dataset: DatasetFingerprint | None = None

    @classmethod
    def parse(cls, data: bytes) -> CheckpointManifest:
        """Reads ``manifest.json`` from any source. Raises ValueError with the first problem."""
        return parse_manifest(cls, data, max_classes=MAX_CHECKPOINT_CLASSES)

"""Weights that a submission names: where they are, and which network they are of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from multigrain.bundle.manifest import MANIFEST_NAME, BundleManifest
from multigrain.checkpoint.manifest import CheckpointManifest
from multigrain.errors import ErrorKind, FieldViolation, MultigrainError
from multigrain.files import MAX_DOCUMENT_BYTES, Roots, read_bytes
from multigrain.specs.base import WeightsSource
from multigrain.specs.training import TrainingSpec
from multigrain.specs.weights_reference import HUBS, WeightsReference, parse_reference


@dataclass(frozen=True)
class WeightsStart:
    """Where a training run starts.

    Attributes:
        name: for the specification: a path, or the name of weights; "" = random weights.
        weights_path: see JobRequest.
        of_job: whether that is a checkpoint of another job.
        hub: a library's weights.
        network: the network of the weights, as overrides; empty if it is not known.
    """

    name: str = ""
    weights_path: str = ""
    of_job: bool = False
    hub: WeightsReference | None = None
    network: dict[str, Any] = field(default_factory=dict)


def stored_labels(weights: Path, roots: Roots = None) -> tuple[str, ...]:
    """Class names in a checkpoint or bundle folder; empty if there are none.

    Args:
        weights: the folder.
        roots: folders that its manifest must be in.
    """
    manifest = _manifest(weights, roots)
    return manifest.labels if manifest is not None else ()


def stored_job(weights: Path, roots: Roots = None) -> str:
    """Id of the training job in a checkpoint or bundle folder; empty if there is none.

    Args:
        weights: the folder.
        roots: folders that its manifest must be in.
    """
    manifest = _manifest(weights, roots)
    if isinstance(manifest, BundleManifest):
        return manifest.source.job_id
    return manifest.job_id if manifest is not None else ""


def _manifest(weights: Path, roots: Roots) -> CheckpointManifest | BundleManifest | None:
    kinds: tuple[tuple[str, type[CheckpointManifest | BundleManifest]], ...] = (
        ("manifest.json", CheckpointManifest),
        (MANIFEST_NAME, BundleManifest),
    )
    for name, kind in kinds:
        try:
            text = read_bytes(weights / name, max_bytes=MAX_DOCUMENT_BYTES, roots=roots)
            return kind.parse(text)
        except (OSError, ValueError):
            # A plain weights file, or a damaged folder: the job reports what is wrong with it.
            continue
    return None


def stored_network(weights: Path, roots: Roots) -> dict[str, Any]:
    """Trunk and stem in a checkpoint or bundle folder, as overrides; empty if there are none."""
    manifest = _manifest(weights, roots)
    if manifest is None:
        return {}
    return {"model": {"trunk": manifest.model.trunk, "stem": manifest.model.stem}}


def check_network(spec: TrainingSpec, start: WeightsStart) -> None:
    """Refuses weights of another network."""
    for name, found in start.network.get("model", {}).items():
        if found != getattr(spec.model, name):
            raise MultigrainError.field(
                f"spec.model.{name}",
                f"is {getattr(spec.model, name)!r}, but initial_weights has {found!r}; use that, "
                "or other weights",
            )


def with_source(overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    """Replaces a checkpoint_path that names a job or a model by that."""
    weights = overrides.get("weights")
    if not isinstance(weights, Mapping) or not isinstance(weights.get("checkpoint_path"), str):
        return overrides
    field = "spec.weights.checkpoint_path"
    reference = parse_reference(weights["checkpoint_path"], field)
    if reference is None or reference.kind in HUBS:
        return overrides
    others = {key: value for key, value in weights.items() if key != "checkpoint_path"}
    return {
        **overrides,
        "weights": {**source_of(reference).model_dump(exclude_defaults=True), **others},
    }


def source_of(reference: WeightsReference) -> WeightsSource:
    if reference.kind == "model":
        return WeightsSource(model=reference.name)
    return WeightsSource(job_id=reference.name, checkpoint=reference.checkpoint)


def hub_of(source: WeightsSource) -> WeightsReference | None:
    reference = parse_reference(source.checkpoint_path, "spec.weights.checkpoint_path")
    return reference if reference is not None and reference.kind in HUBS else None


def check_library(reference: WeightsReference, field: str) -> None:
    if find_spec(reference.kind) is None:
        reason = (
            f"'{reference}' is fetched by {reference.kind}, which is not installed on the server: "
            "pip install 'multigrain[hub]', or give the path of a file"
        )
        raise MultigrainError(
            ErrorKind.UNSUPPORTED,
            f"{field}: {reason}",
            violations=(FieldViolation(field, reason),),
        )

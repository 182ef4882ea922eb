"""Bundles for tests, without graphs."""

from __future__ import annotations

from pathlib import Path

from multigrain.bundle.folder import write_manifest
from multigrain.bundle.manifest import BundleManifest, Head
from multigrain.images.parameters import Preprocessing
from multigrain.specs.training import ModelSpec
from multigrain.storage import describe


def write_bundle(path: Path) -> BundleManifest:
    path.mkdir(parents=True)
    for name, content in (("weights.safetensors", b"w" * 1000), ("model.onnx", b"graph")):
        (path / name).write_bytes(content)
    manifest = BundleManifest(
        name="m",
        version=3,
        model=ModelSpec(classes=2),
        embedding_size=8,
        labels=("a", "b"),
        heads=(
            Head(
                resolution=32,
                gem_p=3.0,
                preprocessing=Preprocessing.standard(32),
                onnx="model.onnx",
            ),
        ),
        files={name: describe(path / name) for name in ("weights.safetensors", "model.onnx")},
    )
    write_manifest(path, manifest)
    return manifest

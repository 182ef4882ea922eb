"""Writes a bundle of ResNet-50 with GeM at 224 px and random weights, for speed measurements.

``python -m benchmarks.resnet50 MODELS_DIR [NAME] [VERSION] [TRUNK] [SIZE]``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from multigrain.bundle.manifest import BundleManifest, Head
from multigrain.bundle.reference import write_reference
from multigrain.images.parameters import Preprocessing
from multigrain.specs.training import ModelSpec
from multigrain.storage import describe

SIZE = 224
CLASSES = 1000


def write_bundle(
    models_dir: Path,
    name: str = "resnet50",
    version: int = 1,
    trunk: str = "resnet50",
    size: int = SIZE,
) -> Path:
    """Returns ``models_dir/name/version`` and writes the bundle if it is missing."""
    folder = models_dir / name / str(version)
    if (folder / "model.json").is_file():
        return folder
    # Imported here: takes seconds and is not needed for an existing bundle.
    from safetensors.numpy import save_file

    from multigrain.export import graphs
    from multigrain.model.multigrain import build_model
    from multigrain.model.state import model_state

    folder.mkdir(parents=True, exist_ok=True)
    spec = ModelSpec(trunk=trunk, classes=CLASSES, image_size=size)
    network = build_model(spec, CLASSES, seed=version)
    network.set_train(False)
    save_file(model_state(network), folder / "weights.safetensors")
    preprocessing = Preprocessing.standard(size)
    expected = graphs.reference(network, preprocessing)
    write_reference(folder / "reference.safetensors", expected)
    images = expected.images(preprocessing)
    graphs.write_onnx(network, folder / "model.onnx", images, expected)
    manifest = BundleManifest(
        name=name,
        version=version,
        model=spec,
        embedding_size=network.embedding_size,
        labels=tuple(f"class {number}" for number in range(CLASSES)),
        heads=(
            Head(
                resolution=size,
                gem_p=3.0,
                preprocessing=preprocessing,
                onnx="model.onnx",
                reference="reference.safetensors",
            ),
        ),
        files={path.name: describe(path) for path in folder.iterdir() if path.is_file()},
    )
    (folder / "model.json").write_text(manifest.model_dump_json(indent=2))
    return folder


if __name__ == "__main__":
    given = sys.argv[1:]
    defaults = ["models", "resnet50", "1", "resnet50", str(SIZE)]
    folder, name, version, trunk, size = [*given, *defaults[len(given) :]]
    print(write_bundle(Path(folder), name, int(version), trunk, int(size)))

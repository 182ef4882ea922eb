"""Writes a bundle of ResNet-50 with GeM at 224 px for accuracy comparisons, with an int8 graph.

``python -m benchmarks.calibrated MODELS_DIR`` writes ``MODELS_DIR/calibrated/1`` in about a
minute. The weights are random, the BatchNorm statistics are those of photographs, so that the
activations are as large as in a trained network. ``photographs.npz`` in the bundle's folder holds
MindSpore's float32 outputs for ``benchmarks.photographs``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.photographs import COUNT, photographs
from multigrain.bundle.manifest import BundleManifest, Head
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import preprocess
from multigrain.specs.export import ExportSpec
from multigrain.specs.training import ModelSpec

NAME = "calibrated"
SIZE = 224
CLASSES = 1000
PREPROCESSING = Preprocessing.standard(SIZE)
REFERENCE = "photographs.npz"
_BATCH = 16
_PASSES = 12


def write_bundle(models_dir: Path) -> Path:
    """Returns the bundle's folder and writes it if it is missing."""
    folder = models_dir / NAME / "1"
    if (folder / "model.json").is_file():
        return folder
    # Imported here: takes seconds and is not needed for an existing bundle.
    import mindspore
    from mindspore import Tensor
    from safetensors.numpy import save_file

    from multigrain.bundle.reference import write_reference
    from multigrain.export import graphs
    from multigrain.export.int8 import write_int8
    from multigrain.export.int8_images import NoInt8, int8_images
    from multigrain.model.multigrain import build_model
    from multigrain.model.state import model_state
    from multigrain.storage import describe

    mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
    spec = ModelSpec(trunk="resnet50", classes=CLASSES, image_size=SIZE, zero_init_residual=False)
    network = build_model(spec, CLASSES, seed=1)
    pictures = photographs(2 * COUNT)
    images = np.stack([preprocess(data, PREPROCESSING) for data in pictures[:COUNT]])
    network.set_train(True)
    for number in range(_PASSES):
        start = number * _BATCH % COUNT
        network(Tensor(images[start : start + _BATCH]))
    network.set_train(False)

    folder.mkdir(parents=True, exist_ok=True)
    outputs = [
        [part.asnumpy() for part in network(Tensor(images[start : start + _BATCH]))]
        for start in range(0, COUNT, _BATCH)
    ]
    embedding, logits = (np.concatenate(part) for part in zip(*outputs, strict=True))
    np.savez(folder / REFERENCE, embedding=embedding, logits=logits)
    save_file(model_state(network), folder / "weights.safetensors")
    reference = graphs.reference(network, PREPROCESSING)
    write_reference(folder / "reference.safetensors", reference)
    graphs.write_onnx(network, folder / "model.onnx", reference.images(PREPROCESSING), reference)
    with tempfile.TemporaryDirectory() as calibration:
        for number, data in enumerate(pictures[COUNT:]):
            (Path(calibration) / f"{number:03}.jpg").write_bytes(data)
        export = ExportSpec(model_name=NAME, int8_path=calibration)
        int8 = write_int8(
            folder / "model.onnx",
            folder / "model-int8.xml",
            int8_images(export, ()),
            PREPROCESSING,
            lambda: None,
        )
    if isinstance(int8, NoInt8):
        raise SystemExit(f"no 8-bit graph: {int8.reason}")
    head = Head(
        resolution=SIZE,
        gem_p=spec.gem_p,
        preprocessing=PREPROCESSING,
        onnx="model.onnx",
        reference="reference.safetensors",
        int8=int8,
    )
    manifest = BundleManifest(
        name=NAME,
        version=1,
        model=spec,
        embedding_size=network.embedding_size,
        labels=tuple(f"class {number}" for number in range(CLASSES)),
        heads=(head,),
        files={
            name: describe(folder / name) for name in ("weights.safetensors", *head.named_files)
        },
    )
    (folder / "model.json").write_text(manifest.model_dump_json(indent=2))
    return folder


if __name__ == "__main__":
    print(write_bundle(Path(sys.argv[1])))

"""Small bundles for tests, with a real ONNX graph whose outputs a test can compute."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from multigrain.bundle.manifest import BundleManifest, Head, WhiteningEntry
from multigrain.bundle.reference import Reference, normalized, pattern_pixels, write_reference
from multigrain.images.parameters import Preprocessing
from multigrain.specs.training import ModelSpec
from multigrain.storage import FileEntry
from multigrain.whitening import Moments, Whitening, fit_whitening, fold_classifier, write_whitening

EMBEDDING = 16
CLASSES = 5
SIZE = 32


class TinyNetwork:
    """3x3 convolution, ReLU, mean-of-cubes pooling (GeM, p = 3), dense layer.

    ``repeat`` convolutions of ``width`` channels follow the first, to make it slow on purpose.
    """

    def __init__(self, seed: int = 0, *, width: int = EMBEDDING, repeat: int = 0) -> None:
        rng = np.random.default_rng(seed)

        def normal(*shape: int) -> NDArray[np.float32]:
            fan_in = int(np.prod(shape[1:])) or 1
            return (rng.standard_normal(shape) * (2 / fan_in) ** 0.5).astype(np.float32)

        self.convolutions = [normal(width, 3, 3, 3)]
        self.convolutions += [normal(width, width, 3, 3) for _ in range(repeat)]
        self.weight = normal(CLASSES, width)
        self.bias = normal(CLASSES)
        self.embedding_size = width

    def save_onnx(self, path: Path) -> None:
        """Writes the graph with a free batch dimension."""
        nodes, initializers, last = [], [], "images"
        for number, kernel in enumerate(self.convolutions):
            initializers.append(numpy_helper.from_array(kernel, f"kernel{number}"))
            nodes += [
                helper.make_node(
                    "Conv", [last, f"kernel{number}"], [f"conv{number}"], pads=[1, 1, 1, 1]
                ),
                helper.make_node("Relu", [f"conv{number}"], [f"relu{number}"]),
            ]
            last = f"relu{number}"
        constants = {
            "three": np.array(3.0, np.float32),
            "third": np.array(1 / 3, np.float32),
            "weight": self.weight,
            "bias": self.bias,
        }
        initializers += [numpy_helper.from_array(v, k) for k, v in constants.items()]
        nodes += [
            helper.make_node("Pow", [last, "three"], ["cubes"]),
            helper.make_node("ReduceMean", ["cubes"], ["means"], axes=[2, 3], keepdims=0),
            helper.make_node("Pow", ["means", "third"], ["embedding"]),
            helper.make_node("Gemm", ["embedding", "weight", "bias"], ["logits"], transB=1),
        ]
        graph = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, None, None])],
            [
                helper.make_tensor_value_info(
                    "embedding", TensorProto.FLOAT, ["N", self.embedding_size]
                ),
                helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES]),
            ],
            initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString())

    def embed(self, image: NDArray[np.float32]) -> NDArray[np.float64]:
        """The same network by NumPy loops, for one image (3, S, S): the tests' oracle."""
        x = image.astype(np.float64)
        for kernel in self.convolutions:
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
            out = np.zeros((len(kernel), *x.shape[1:]))
            for dy in range(3):
                for dx in range(3):
                    window = padded[:, dy : dy + x.shape[1], dx : dx + x.shape[2]]
                    out += np.einsum("oc,chw->ohw", kernel[:, :, dy, dx], window)
            x = np.maximum(out, 0)
        return np.asarray((x**3).mean(axis=(1, 2)) ** (1 / 3))

    def logits(self, embedding: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(self.weight @ embedding + self.bias)


def whitening_of(network: TinyNetwork) -> Whitening:
    """A whitening fitted to random vectors: enough to test the arithmetic."""
    moments = Moments(network.embedding_size)
    moments.add(np.abs(np.random.default_rng(7).normal(size=(200, network.embedding_size))))
    return fit_whitening(moments)


def reference_of(network: TinyNetwork, preprocessing: Preprocessing) -> Reference:
    """Three images, and the outputs that the test computes for them."""
    pixels = pattern_pixels(preprocessing.size, 3)
    rows = [network.embed(image) for image in normalized(pixels, preprocessing)]
    return Reference(
        pixels,
        np.stack(rows).astype(np.float32),
        np.stack([network.logits(row) for row in rows]).astype(np.float32),
    )


def write_bundle(
    models_dir: Path,
    name: str = "tiny",
    version: int = 1,
    *,
    network: TinyNetwork | None = None,
    size: int = SIZE,
    also: int = 0,
    whitened: bool = False,
    referenced: bool = False,
) -> Path:
    """Writes ``models_dir/name/version`` and returns it.

    ``also`` is a second resolution; with ``whitened``, the first one has a whitening, and with
    ``referenced`` a reference (by the oracle).
    """
    network = network or TinyNetwork(seed=version)
    folder = models_dir / name / str(version)
    folder.mkdir(parents=True)
    network.save_onnx(folder / "model.onnx")
    whitening = None
    if whitened:
        fitted = whitening_of(network)
        classifier = fold_classifier(fitted, network.weight, network.bias)
        stored = write_whitening(folder / "whitening.safetensors", fitted, classifier)
        whitening = WhiteningEntry(file="whitening.safetensors", size=stored.size, images=200)
    preprocessing = Preprocessing(size=size, resize_short=size)
    if referenced:
        write_reference(folder / "reference.safetensors", reference_of(network, preprocessing))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    manifest = BundleManifest(
        name=name,
        version=version,
        model=ModelSpec(trunk="resnet18", classes=CLASSES, image_size=size),
        embedding_size=network.embedding_size,
        labels=tuple(f"label {number}" for number in range(CLASSES)),
        heads=tuple(
            Head(
                resolution=side,
                gem_p=3.0,
                preprocessing=Preprocessing(size=side, resize_short=side),
                onnx="model.onnx",
                whitening=whitening if side == size else None,
                reference="reference.safetensors" if referenced and side == size else "",
            )
            for side in (size, also)
            if side
        ),
        files={
            name: FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
            for name, data in files.items()
        },
    )
    (folder / "model.json").write_text(manifest.model_dump_json(indent=2))
    return folder

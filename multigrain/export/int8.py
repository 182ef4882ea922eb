"""A head's quantized graph: made with NNCF, and judged on images that it was not made with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np

from multigrain.bundle.manifest import GraphScores, Int8Entry
from multigrain.bundle.reference import MIN_COSINE
from multigrain.data.image_folder import ImageFolder, scan_images
from multigrain.data.probe import probe
from multigrain.engine.runtimes.base import Compute, FloatArray, Outputs
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import preprocess
from multigrain.specs.export import ExportSpec

_MAX_UNREADABLE: Final = 0.5
_MAX_EVALUATED: Final = 2000
_CHUNK: Final = 32


@dataclass(frozen=True)
class Int8Images:
    """Disjoint parts of a folder: to calibrate with, and to judge the result by.

    Args:
        folder: the images.
        calibration, evaluation: indices.
        labels: by index the place of the image's top folder among the model's labels; -1 = none.
    """

    folder: ImageFolder
    calibration: list[int]
    evaluation: list[int]
    labels: list[int]


def int8_images(spec: ExportSpec, labels: Sequence[str]) -> Int8Images:
    """Draws the images, the same for every resolution and every run.

    Raises:
        MultigrainError: DATASET if there are fewer than two or most cannot be read; UNSUPPORTED
            if NNCF is not installed; INVALID_FIELD without the format that is quantized.
    """
    if "onnx" not in spec.formats:
        raise MultigrainError.field("spec.formats", "must hold onnx: int8_path quantizes it")
    if find_spec("nncf") is None:
        raise MultigrainError(
            ErrorKind.UNSUPPORTED,
            "spec.int8_path needs NNCF, which is not installed: pip install 'multigrain[int8]'",
        )
    folder = scan_images(Path(spec.int8_path))
    if len(folder) < 2:
        raise MultigrainError(
            ErrorKind.DATASET,
            "spec.int8_path has one image: give several hundred like those served",
        )
    probe(folder, _MAX_UNREADABLE, files=256)
    order = np.random.default_rng(0).permutation(len(folder)).tolist()
    count = min(spec.int8_images, len(folder) // 2)
    places = {label: place for place, label in enumerate(labels)}
    return Int8Images(
        folder,
        order[:count],
        order[count : count + _MAX_EVALUATED],
        [places.get(path.partition("/")[0], -1) for path in folder.paths],
    )


def write_int8(
    onnx: Path,
    path: Path,
    images: Int8Images,
    preprocessing: Preprocessing,
    on_progress: Callable[[], None],
) -> Int8Entry:
    """Quantizes ``onnx`` to ``path`` (OpenVINO's .xml, its .bin beside it), and judges it.

    Weights and activations in 8 bits (NNCF's post-training quantization: symmetric weights a
    channel, bias corrected), scales from the calibration images.

    Raises:
        MultigrainError: UNSUPPORTED if the quantized network is too far from the network.
    """
    # Imported first: it sees to it that openvino reports nothing. NNCF has a switch for that.
    from multigrain.engine.runtimes.openvino import OpenVinoRuntime

    os.environ["NNCF_CI"] = "1"
    import nncf
    import openvino

    readable = [index for index, _ in _load(images, images.calibration, preprocessing)]

    def prepared(index: int) -> FloatArray:
        on_progress()
        return preprocess(images.folder.read(index), preprocessing)[None]

    quantized = nncf.quantize(
        # Unlike Core.read_model this joins each BatchNorm with its convolution. Left apart, NNCF
        # would round to 8 bits between the two as well: a quarter slower, and less exact.
        openvino.convert_model(onnx),
        nncf.Dataset(readable, prepared),
        subset_size=len(readable),
    )
    openvino.save_model(quantized, path, compress_to_fp16=False)
    compute = Compute()
    right = OpenVinoRuntime(onnx, preprocessing, compute, "f32")
    ours = OpenVinoRuntime(path, preprocessing, compute, "int8")
    judge = _Judge()
    chunk: list[tuple[int, FloatArray]] = []
    for item in _load(images, images.evaluation, preprocessing):
        chunk.append(item)
        if len(chunk) == _CHUNK:
            on_progress()
            judge.add(chunk, images.labels, right.run(_stack(chunk)), ours.run(_stack(chunk)))
            chunk = []
    if chunk:
        judge.add(chunk, images.labels, right.run(_stack(chunk)), ours.run(_stack(chunk)))
    entry = judge.entry(path.name, len(readable))
    if not entry.cosine_mean >= MIN_COSINE["int8"]:
        raise MultigrainError(
            ErrorKind.UNSUPPORTED,
            f"spec.int8_path: in 8 bits the vectors have a mean cosine of {entry.cosine_mean:.4f} "
            f"with the network's, less than {MIN_COSINE['int8']:g}: this network is served in "
            "bfloat16; leave int8_path out, or give images like those that are served",
        )
    return entry


class _Judge:
    """Adds up how the two graphs do on labeled and unlabeled images."""

    def __init__(self) -> None:
        self._cosines: list[float] = []
        self._agree = 0
        self._labeled = 0
        self._hits = np.zeros((2, 2), np.int64)  # graph, top-1 and top-5

    def add(
        self,
        chunk: list[tuple[int, FloatArray]],
        labels: Sequence[int],
        right: Outputs,
        ours: Outputs,
    ) -> None:
        a, b = (o.embedding.astype(np.float64) for o in (right, ours))
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        self._cosines += ((a * b).sum(axis=1) / norms).tolist()
        best = [np.argsort(-o.logits, axis=1, kind="stable")[:, :5] for o in (right, ours)]
        self._agree += int((best[0][:, 0] == best[1][:, 0]).sum())
        for row, (index, _) in enumerate(chunk):
            label = labels[index]
            if label < 0:
                continue
            self._labeled += 1
            for graph in (0, 1):
                self._hits[graph] += best[graph][row, 0] == label, label in best[graph][row]

    def entry(self, file: str, calibrated: int) -> Int8Entry:
        rates = self._hits / max(1, self._labeled)
        scores = [GraphScores(top1=float(row[0]), top5=float(row[1])) for row in rates]
        return Int8Entry(
            file=file,
            calibration_images=calibrated,
            images=len(self._cosines),
            cosine_mean=float(np.mean(self._cosines)) if self._cosines else 0.0,
            cosine_min=min(self._cosines, default=0.0),
            same_top1=self._agree / max(1, len(self._cosines)),
            labelled_images=self._labeled,
            f32=scores[0] if self._labeled else None,
            int8=scores[1] if self._labeled else None,
        )


def _load(
    images: Int8Images, indices: Sequence[int], preprocessing: Preprocessing
) -> Iterator[tuple[int, FloatArray]]:
    """Those that can be read."""
    for index in indices:
        try:
            yield index, preprocess(images.folder.read(index), preprocessing)
        except MultigrainError:
            continue  # the probe has refused folders where that is common


def _stack(chunk: list[tuple[int, FloatArray]]) -> FloatArray:
    return np.stack([image for _, image in chunk])

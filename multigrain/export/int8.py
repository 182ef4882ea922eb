"""A head's graph quantized to 8 bits with NNCF, and evaluated on other images."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np

from multigrain.bundle.manifest import GraphScores, Int8Entry
from multigrain.bundle.reference import MIN_COSINE
from multigrain.data.image_folder import ImageFolder, class_order, scan_images
from multigrain.data.probe import probe
from multigrain.engine.runtimes.base import Compute, FloatArray, Outputs
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.limits import DEFAULT_LIMITS, ImageLimits
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import preprocess
from multigrain.machine import cpus
from multigrain.specs.export import ExportSpec

_MAX_UNREADABLE: Final = 0.5
_MAX_EVALUATED: Final = 2000
_CHUNK: Final = 32


@dataclass(frozen=True)
class Int8Images:
    """Disjoint samples of a folder: for calibration, and for the evaluation of the result.

    Args:
        folder: the images.
        calibration, evaluation: indices.
        labels: class index of each image, by its top-level folder; -1 if that is no class.
    """

    folder: ImageFolder
    calibration: list[int]
    evaluation: list[int]
    labels: list[int]


def int8_images(
    spec: ExportSpec, labels: Sequence[str], limits: ImageLimits = DEFAULT_LIMITS
) -> Int8Images:
    """Samples the images, the same ones for every resolution and every run.

    Raises:
        MultigrainError: DATASET, if there are fewer than two or most are unreadable; UNSUPPORTED,
            if NNCF is not installed; INVALID_FIELD, if the format "onnx" is not exported.
    """
    if "onnx" not in spec.formats:
        raise MultigrainError.field("spec.formats", "must include onnx: int8_path quantizes it")
    if find_spec("nncf") is None:
        raise MultigrainError(
            ErrorKind.UNSUPPORTED,
            "spec.int8_path needs NNCF, which is not installed: pip install 'multigrain[int8]'",
        )
    folder = scan_images(Path(spec.int8_path), limits)
    if len(folder) < 2:
        raise MultigrainError(
            ErrorKind.DATASET,
            "spec.int8_path has one image: give several hundred like those to be served",
        )
    probe(folder, _MAX_UNREADABLE, files=256)
    order = np.random.default_rng(0).permutation(len(folder)).tolist()
    count = min(spec.int8_images, len(folder) // 2)
    tops = [path.partition("/")[0] for path in folder.paths]
    names = sorted(set(tops))
    class_indices = dict(zip(names, class_order(names, labels), strict=True))
    return Int8Images(
        folder,
        order[:count],
        order[count : count + _MAX_EVALUATED],
        [class_indices[top] for top in tops],
    )


def write_int8(
    onnx: Path,
    path: Path,
    images: Int8Images,
    preprocessing: Preprocessing,
    on_progress: Callable[[], None],
) -> Int8Entry:
    """Quantizes ``onnx`` to ``path`` (OpenVINO's .xml, with its .bin beside it), and evaluates it.

    Weights and activations have 8 bits (NNCF's post-training quantization: symmetric weights per
    channel, bias correction), with scales from the calibration images.

    Raises:
        MultigrainError: UNSUPPORTED, if the embeddings differ too much from the network's.
    """
    # Imported first, because it turns off openvino's telemetry. NNCF_CI turns off NNCF's.
    from multigrain.engine.runtimes.openvino import OpenVinoRuntime

    os.environ["NNCF_CI"] = "1"
    import nncf
    import openvino

    readable = [index for index, _ in _load(images, images.calibration, preprocessing)]

    def prepared(index: int) -> FloatArray:
        on_progress()
        return preprocess(images.folder.read(index), preprocessing, images.folder.limits)[None]

    found = cpus()
    compute = Compute(threads=found.available if found.limited else 0)
    with _threads_of_graphs(compute.threads):
        quantized = nncf.quantize(
            # Unlike Core.read_model this fuses each BatchNorm with its convolution. Otherwise NNCF
            # quantizes between the two as well: a quarter slower, and less exact.
            openvino.convert_model(onnx),
            nncf.Dataset(readable, prepared),
            subset_size=len(readable),
        )
    openvino.save_model(quantized, path, compress_to_fp16=False)
    expected = OpenVinoRuntime(onnx, preprocessing, compute, "f32")
    actual = OpenVinoRuntime(path, preprocessing, compute, "int8")
    comparison = _Comparison()
    chunk: list[tuple[int, FloatArray]] = []
    for item in _load(images, images.evaluation, preprocessing):
        chunk.append(item)
        if len(chunk) == _CHUNK:
            on_progress()
            batch = _stack(chunk)
            comparison.add(chunk, images.labels, expected.run(batch), actual.run(batch))
            chunk = []
    if chunk:
        batch = _stack(chunk)
        comparison.add(chunk, images.labels, expected.run(batch), actual.run(batch))
    entry = comparison.entry(path.name, len(readable))
    if not entry.cosine_mean >= MIN_COSINE["int8"]:
        raise MultigrainError(
            ErrorKind.UNSUPPORTED,
            "spec.int8_path: the 8-bit embeddings have a mean cosine similarity of "
            f"{entry.cosine_mean:.4f} with the network's, less than {MIN_COSINE['int8']:g}: omit "
            "int8_path (the network is served in bfloat16), or give images like those to be served",
        )
    return entry


@contextlib.contextmanager
def _threads_of_graphs(threads: int) -> Iterator[None]:
    """Limits the threads of every graph that NNCF compiles: it has no option for that.

    Args:
        threads: 0 = OpenVINO's default, which is one for each CPU of the machine.
    """
    from openvino import Core

    compile_model = Core.compile_model

    def limited(
        core: Core, model: Any, device_name: Any = None, config: Any = None, **other: Any
    ) -> Any:
        config = {"INFERENCE_NUM_THREADS": threads, **(config or {})}
        return compile_model(core, model, device_name, config, **other)

    if threads:
        Core.compile_model = limited
    try:
        yield
    finally:
        Core.compile_model = compile_model


class _Comparison:
    """Accumulates the agreement of the two graphs, and their accuracy on labeled images."""

    def __init__(self) -> None:
        self._cosines: list[float] = []
        self._agree = 0
        self._labeled = 0
        self._hits = np.zeros((2, 2), np.int64)  # graph, top-1 and top-5

    def add(
        self,
        chunk: list[tuple[int, FloatArray]],
        labels: Sequence[int],
        expected: Outputs,
        actual: Outputs,
    ) -> None:
        a, b = (o.embedding.astype(np.float64) for o in (expected, actual))
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        self._cosines += ((a * b).sum(axis=1) / norms).tolist()
        best = [np.argsort(-o.logits, axis=1, kind="stable")[:, :5] for o in (expected, actual)]
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
    """Yields index and pixels of the readable images."""
    for index in indices:
        try:
            data = images.folder.read(index)
            yield index, preprocess(data, preprocessing, images.folder.limits)
        except MultigrainError:
            continue  # the probe rejects folders with many unreadable images


def _stack(chunk: list[tuple[int, FloatArray]]) -> FloatArray:
    return np.stack([image for _, image in chunk])

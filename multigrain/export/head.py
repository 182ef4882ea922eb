"""The files of one resolution head of a bundle: graphs, reference outputs and whitening."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multigrain.bundle.manifest import Head, Int8Entry, WhiteningEntry
from multigrain.bundle.reference import Reference, write_reference
from multigrain.data.image_folder import ImageFolder, scan_images
from multigrain.data.probe import probe
from multigrain.evaluate.inference import CompiledModel, FloatArray, Inference
from multigrain.events.records import LogRecord
from multigrain.export import graphs
from multigrain.export.int8 import StopRequested, write_int8
from multigrain.export.int8_cost import describe
from multigrain.export.int8_images import Int8Images, NoInt8
from multigrain.images.limits import DEFAULT_LIMITS, ImageLimits
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import preprocess
from multigrain.jobs.context import WorkerContext
from multigrain.specs.export import ExportSpec
from multigrain.text import printable
from multigrain.weights.restore import RestoredModel
from multigrain.whitening import (
    Moments,
    StoredWhitening,
    fit_whitening,
    fold_classifier,
    read_whitening,
    write_whitening,
)

_FORMS = {"mindir": "model.mindir", "onnx": "model.onnx", "air": "model.air"}
_INT8 = "model-int8.xml"
_WHITENING = "whitening.safetensors"
_REFERENCE = "reference.safetensors"
_MAX_UNREADABLE = 0.5
_BATCH = 32


@dataclass(frozen=True)
class WhiteningImages:
    """The images that a whitening is fitted to: ``indices`` of a folder."""

    folder: ImageFolder
    indices: list[int]


def whitening_images(spec: ExportSpec, limits: ImageLimits = DEFAULT_LIMITS) -> WhiteningImages:
    """Samples the images, the same ones for every resolution and every run.

    Raises:
        MultigrainError: DATASET, if there are none or most are unreadable.
    """
    folder = scan_images(Path(spec.whitening_path), limits)
    probe(folder, _MAX_UNREADABLE, files=256)
    order = np.random.default_rng(0).permutation(len(folder))
    return WhiteningImages(folder, sorted(order[: spec.whitening_images].tolist()))


@dataclass(frozen=True)
class HeadWriter:
    """Writes the files of one resolution head.

    Args:
        ctx: this worker's reporter.
        spec: the export job.
        restored: the network with the head's exponent.
        preprocessing: of the head.
        folder: the bundle's temporary folder.
        default: whether this is the default head.
        int8: images to calibrate and measure an 8-bit graph; or why there is none.
    """

    ctx: WorkerContext
    spec: ExportSpec
    restored: RestoredModel
    preprocessing: Preprocessing
    folder: Path
    default: bool
    int8: Int8Images | NoInt8

    def write(self, images: WhiteningImages | None) -> Head | None:
        """Writes the files; returns the head, or None if asked to stop.

        Args:
            images: images to fit a whitening to; None = no whitening.
        """
        names = {form: self._name(_FORMS[form]) for form in dict.fromkeys(self.spec.formats)}
        size = self.preprocessing.size
        network = self.restored.network
        expected = graphs.reference(network, self.preprocessing)
        compared = expected.images(self.preprocessing)
        reference = self._name(_REFERENCE)
        write_reference(self.folder / reference, expected)
        for form, name in names.items():
            if self.ctx.reporter.stop_requested:
                return None
            self._log(f"writing {name}")
            if form == "mindir":
                graphs.write_mindir(network, self.folder / name, compared, expected)
            elif form == "onnx":
                graphs.write_onnx(network, self.folder / name, compared, expected)
            else:
                graphs.write_air(network, self.folder / name, compared)
        entry = None
        if images is not None:
            entry = self._whitening(images)
            if entry is None:
                return None
        quantized: Int8Entry | NoInt8
        try:
            quantized = self._quantize(names.get("onnx", ""), expected, entry)
        except StopRequested:
            return None
        return Head(
            resolution=size,
            gem_p=self.restored.spec.gem_p,
            preprocessing=self.preprocessing,
            whitening=entry,
            reference=reference,
            int8=quantized if isinstance(quantized, Int8Entry) else None,
            no_int8=quantized.reason if isinstance(quantized, NoInt8) else "",
            **names,
        )

    def _quantize(
        self, onnx: str, reference: Reference, whitening: WhiteningEntry | None
    ) -> Int8Entry | NoInt8:
        """Writes the 8-bit graph, and logs what it costs or why there is none."""
        size = self.preprocessing.size
        found: Int8Entry | NoInt8
        if isinstance(self.int8, NoInt8):
            found = self.int8
        else:
            name = self._name(_INT8)
            used = len(self.int8.calibration.indices)
            self._log(f"writing {name}, calibrated with {used} images")
            found = write_int8(
                self.folder / onnx,
                self.folder / name,
                self.int8,
                self.preprocessing,
                self._progress,
                reference=reference,
                whitening=self._stored(whitening),
            )
        if isinstance(found, Int8Entry):
            self._log(f"8-bit graph at {size} px: {describe(found)}")
        elif found.reason:
            self._log(f"no 8-bit graph at {size} px: {found.reason}", "WARNING")
        return found

    def _progress(self) -> None:
        if self.ctx.reporter.stop_requested:
            raise StopRequested
        self.ctx.reporter.alive()

    def _stored(self, entry: WhiteningEntry | None) -> StoredWhitening | None:
        if entry is None:
            return None
        return read_whitening(self.folder / entry.file, self.restored.network.embedding_size)

    def _name(self, name: str) -> str:
        if self.default:
            return name
        stem, _, end = name.partition(".")
        return f"{stem}-{self.preprocessing.size}.{end}"

    def _whitening(self, images: WhiteningImages) -> WhiteningEntry | None:
        """Fits and writes the whitening, with images preprocessed as in serving."""
        name = self._name(_WHITENING)
        reporter = self.ctx.reporter
        count, size = len(images.indices), self.preprocessing.size
        self._log(f"computing the descriptors of {count} images at {size} px for {name}")
        network = self.restored.network
        inference = Inference(
            CompiledModel(network),
            _BATCH,
            threads=self.spec.devices.threads_per_worker,
            on_progress=lambda _done: reporter.alive(),
            should_stop=lambda: reporter.stop_requested,
        )

        def load(index: int) -> FloatArray:
            return preprocess(images.folder.read(index), self.preprocessing, images.folder.limits)

        moments, unreadable = Moments(network.embedding_size), dict[int, str]()
        for predictions in inference.run(images.indices, load, unreadable):
            moments.add(predictions.embedding)
        if reporter.stop_requested:
            return None
        for index, reason in sorted(unreadable.items()):
            path = images.folder.paths[index]
            self._log(f"not used, {printable(path)}: {reason}", "WARNING")
        if moments.count <= network.embedding_size:
            self._log(
                f"{name} is fitted to {moments.count} images, fewer than the descriptor's "
                f"{network.embedding_size + 1} dimensions: the other directions are scaled by the "
                "regularization alone",
                "WARNING",
            )
        whitening = fit_whitening(moments)
        weight, bias = (
            np.asarray(self.restored.state[f"classifier.{part}"]) for part in ("weight", "bias")
        )
        stored = write_whitening(
            self.folder / name, whitening, fold_classifier(whitening, weight, bias)
        )
        return WhiteningEntry(file=name, size=stored.size, images=moments.count)

    def _log(self, message: str, level: str = "INFO") -> None:
        self.ctx.reporter.emit(LogRecord(level=level, message=message, rank=self.ctx.rank))

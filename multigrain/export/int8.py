"""A head's graph quantized to 8 bits with NNCF, and measured on other images."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from multigrain.bundle.manifest import Int8Entry
from multigrain.bundle.reference import MIN_COSINE_P1, Agreement, Reference, agreement
from multigrain.engine.runtimes.base import Compute, FloatArray, Runtime
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.export.int8_cost import measure_cost
from multigrain.export.int8_images import Int8Images, NoInt8, Sample
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import preprocess
from multigrain.machine import cpus
from multigrain.memory import is_out_of_memory
from multigrain.whitening import StoredWhitening


class StopRequested(Exception):  # noqa: N818 - no error
    """The job was asked to stop."""


def write_int8(
    onnx: Path,
    path: Path,
    images: Int8Images,
    preprocessing: Preprocessing,
    on_progress: Callable[[], None],
    *,
    reference: Reference | None = None,
    whitening: StoredWhitening | None = None,
) -> Int8Entry | NoInt8:
    """Quantizes ``onnx`` to ``path`` (OpenVINO's .xml, with its .bin beside it), and measures it.

    Weights and activations have 8 bits (NNCF's post-training quantization: symmetric weights per
    channel, bias correction), with scales from the calibration images.

    Args:
        onnx: the float32 graph.
        path: the file to write.
        images: calibrate and measure.
        preprocessing: of the graph.
        on_progress: called often; may raise StopRequested.
        reference: outputs that engines will compare with.
        whitening: of the head; its vectors are measured too.

    Returns:
        The measurements; or why the graph is left out, if it is outside the bars of
        ``multigrain.export.int8_cost``, or NNCF cannot quantize the network. There are no files
        then.

    Raises:
        StopRequested: by ``on_progress``.
    """
    try:
        entry = _write(onnx, path, images, preprocessing, on_progress, reference, whitening)
    except MultigrainError as error:
        if error.kind is not ErrorKind.DATASET:
            raise
        entry = NoInt8(error.message)
    if isinstance(entry, NoInt8):
        path.unlink(missing_ok=True)
        path.with_suffix(".bin").unlink(missing_ok=True)
    return entry


def _write(
    onnx: Path,
    path: Path,
    images: Int8Images,
    preprocessing: Preprocessing,
    on_progress: Callable[[], None],
    reference: Reference | None,
    whitening: StoredWhitening | None,
) -> Int8Entry | NoInt8:
    # Imported first, because it turns off openvino's telemetry.
    from multigrain.engine.runtimes.openvino import OpenVinoRuntime

    readable = [index for index, _ in _load(images.calibration, preprocessing)]
    if not readable:
        return NoInt8("no image to calibrate it with is readable")
    found = cpus()
    compute = Compute(threads=found.available if found.limited else 0)
    problem = _quantize(
        onnx, path, images.calibration, readable, preprocessing, compute, on_progress
    )
    if problem:
        return NoInt8(problem)
    graphs: tuple[Runtime, Runtime] = (
        OpenVinoRuntime(onnx, preprocessing, compute, "f32"),
        OpenVinoRuntime(path, preprocessing, compute, "int8"),
    )
    agreed: Agreement | None = None
    if reference is not None:
        outputs = graphs[1].run_pixels(list(reference.pixels))
        agreed = agreement(outputs.embedding, outputs.logits, reference)
        if not agreed.suffices("int8", MIN_COSINE_P1):
            return NoInt8(
                f"it has a cosine of {agreed.cosine:.4f} with the bundle's reference outputs, less "
                f"than {MIN_COSINE_P1}"
            )
    cost = measure_cost(
        path.name, graphs, images, len(readable), preprocessing, whitening, on_progress
    )
    if cost.problems:
        measured = f"measured on {cost.entry.images} {cost.entry.held_out} images"
        return NoInt8(f"it has {'; '.join(cost.problems)} ({measured})")
    return cost.entry.model_copy(
        update={"reference_cosine": max(0.0, agreed.cosine) if agreed is not None else 0.0}
    )


def _quantize(
    onnx: Path,
    path: Path,
    sample: Sample,
    indices: list[int],
    preprocessing: Preprocessing,
    compute: Compute,
    on_progress: Callable[[], None],
) -> str:
    """Writes the quantized graph; returns why NNCF cannot, or ""."""
    os.environ["NNCF_CI"] = "1"  # turns off its telemetry
    import nncf
    import openvino

    def prepared(index: int) -> FloatArray:
        on_progress()
        return preprocess(sample.folder.read(index), preprocessing, sample.folder.limits)[None]

    try:
        with _threads_of_graphs(compute.threads):
            quantized = nncf.quantize(
                # Unlike Core.read_model this fuses each BatchNorm with its convolution. Otherwise
                # NNCF quantizes between the two as well: a quarter slower, and less exact.
                openvino.convert_model(onnx),
                nncf.Dataset(indices, prepared),
                subset_size=len(indices),
            )
        openvino.save_model(quantized, path, compress_to_fp16=False)
    except (StopRequested, MultigrainError, OSError):
        raise
    except Exception as error:  # its exceptions have no common base class
        if is_out_of_memory(error):
            raise
        return f"NNCF cannot quantize the network ({type(error).__name__}: {error})"[:500]
    return ""


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


def _load(sample: Sample, preprocessing: Preprocessing) -> Iterator[tuple[int, FloatArray]]:
    """Yields index and pixels of the readable images."""
    for index in sample.indices:
        try:
            data = sample.folder.read(index)
            yield index, preprocess(data, preprocessing, sample.folder.limits)
        except MultigrainError:
            continue  # the probe rejects folders with many unreadable images

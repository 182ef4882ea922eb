"""The images that calibrate an 8-bit graph, and the others that measure what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np

from multigrain.data.held_out import recorded_split
from multigrain.data.image_folder import ImageFolder, class_order, scan_images
from multigrain.data.probe import probe
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.limits import DEFAULT_LIMITS, ImageLimits
from multigrain.jobs.job_request import JobRequest
from multigrain.specs.export import ExportSpec
from multigrain.text import printable

#: Fewest images of a training set that are worth calibrating with: fewer do not show the range of
#: the activations, and half of them measure. Not for ``int8_path``, which is the user's choice.
MIN_IMAGES: Final = 32
_MAX_UNREADABLE: Final = 0.5
# A point of top-1 is then 2.6 images; ResNet-50 needs about a minute for them on two cores.
_EVALUATED: Final = 256
# Images of a class, if there are so many: an image should have others to find.
_LEAST_OF_CLASS: Final = 4
_INSTALL: Final = "NNCF is not installed: pip install 'multigrain[server]'"


@dataclass(frozen=True)
class Sample:
    """Some images of a folder.

    Args:
        folder: the images.
        indices: of the images of the sample.
        labels: class index of each image of the folder, by its top-level folder; -1 if that is no
            class of the model.
        groups: number of each image's top-level folder.
    """

    folder: ImageFolder
    indices: list[int]
    labels: list[int]
    groups: list[int]


@dataclass(frozen=True)
class Int8Images:
    """Disjoint samples.

    Args:
        calibration: calibrates the graph.
        evaluation: measures what the graph costs.
        held_out: see ``Int8Entry.held_out``.
    """

    calibration: Sample
    evaluation: Sample
    held_out: str = "int8_path"

    @property
    def folders(self) -> list[ImageFolder]:
        """The folders that the images are in."""
        both = (self.calibration.folder, self.evaluation.folder)
        return list({folder.root: folder for folder in both}.values())


@dataclass(frozen=True)
class NoInt8:
    """Why there is no 8-bit graph; empty if none was wanted."""

    reason: str = ""


def find_images(
    request: JobRequest,
    spec: ExportSpec,
    labels: Sequence[str],
    limits: ImageLimits = DEFAULT_LIMITS,
    held_out: Path | None = None,
) -> Int8Images | NoInt8:
    """Finds the images for the 8-bit graph of an export, or why there can be none.

    Args:
        request: the job, with the datasets of the training run.
        spec: the job's specification.
        labels: the model's class names.
        limits: of an image file.
        held_out: the record of the images that the training run held out of its folder, if it did.

    Raises:
        MultigrainError: as ``int8_images``, if the specification names a folder.
    """
    if spec.int8 == "off":
        return NoInt8()
    if spec.int8_path:
        return int8_images(spec, labels, limits)
    if "onnx" not in spec.formats:
        return NoInt8("it is made from the ONNX graph, which spec.formats leaves out")
    if find_spec("nncf") is None:
        return NoInt8(_INSTALL)
    if not request.train_path:
        return NoInt8(
            "the weights do not come from a training job of this server, so there are no images to "
            "calibrate it with: give int8_path"
        )
    try:
        return _of_training_run(request, spec, labels, limits, held_out)
    except MultigrainError as error:
        return NoInt8(
            f"the images of the training run cannot be used: {error.message}; or give int8_path"
        )


def int8_images(
    spec: ExportSpec, labels: Sequence[str], limits: ImageLimits = DEFAULT_LIMITS
) -> Int8Images:
    """Samples the images of ``int8_path``, the same ones for every resolution and every run.

    Raises:
        MultigrainError: DATASET, if there are fewer than two or most are unreadable; UNSUPPORTED,
            if NNCF is not installed; INVALID_FIELD, if the format "onnx" is not exported.
    """
    if "onnx" not in spec.formats:
        raise MultigrainError.field("spec.formats", "must include onnx: int8_path quantizes it")
    if find_spec("nncf") is None:
        raise MultigrainError(ErrorKind.UNSUPPORTED, f"spec.int8_path: {_INSTALL}")
    folder = _listed(Path(spec.int8_path), limits)
    if len(folder) < 2:
        raise MultigrainError(
            ErrorKind.DATASET,
            "spec.int8_path has one image: give several hundred like those to be served",
        )
    return _split(folder, spec.int8_images, labels, "int8_path")


def _of_training_run(
    request: JobRequest,
    spec: ExportSpec,
    labels: Sequence[str],
    limits: ImageLimits,
    held_out: Path | None,
) -> Int8Images:
    folder = _listed(Path(request.train_path), limits)
    other = None
    if held_out is not None:
        parts = recorded_split(folder, held_out)
        folder, other = parts.train, parts.held_out
    elif request.val_path:
        other = _listed(Path(request.val_path), limits)
    if len(folder) < MIN_IMAGES:
        raise MultigrainError(
            ErrorKind.DATASET,
            f"{printable(str(folder.root))} has {len(folder)} images, fewer than {MIN_IMAGES}",
        )
    images = _split(folder, spec.int8_images, labels, "training")
    if other is None:
        return images
    evaluation = _sample(other, _random_order(other), labels)
    return Int8Images(images.calibration, evaluation, "validation")


def _listed(root: Path, limits: ImageLimits) -> ImageFolder:
    folder = scan_images(root, limits)
    probe(folder, _MAX_UNREADABLE, files=256)
    return folder


def _split(
    folder: ImageFolder, calibration: int, labels: Sequence[str], held_out: str
) -> Int8Images:
    order = _random_order(folder)
    count = min(calibration, len(folder) // 2)
    evaluation = _sample(folder, order[count:], labels)
    chosen = Sample(folder, order[:count], evaluation.labels, evaluation.groups)
    return Int8Images(chosen, evaluation, held_out)


def _random_order(folder: ImageFolder) -> list[int]:
    order: list[int] = np.random.default_rng(0).permutation(len(folder)).tolist()
    return order


def _sample(folder: ImageFolder, order: Sequence[int], labels: Sequence[str]) -> Sample:
    """The first images of each class in ``order``, so that classes have several images each."""
    tops = [path.partition("/")[0] for path in folder.paths]
    names = sorted(set(tops))
    numbers = {name: number for number, name in enumerate(names)}
    classes = class_order(names, labels)
    groups = [numbers[top] for top in tops]
    by_group: dict[int, list[int]] = {}
    for index in order:
        by_group.setdefault(groups[index], []).append(index)
    share = max(_LEAST_OF_CLASS, -(-_EVALUATED // max(1, len(by_group))))
    first = [index for members in by_group.values() for index in members[:share]]
    rest = [index for members in by_group.values() for index in members[share:]]
    chosen = (first + rest)[:_EVALUATED]
    return Sample(folder, chosen, [classes[group] for group in groups], groups)

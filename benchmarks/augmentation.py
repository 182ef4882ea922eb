"""Augmentation with Pillow in the loader's threads compared with MindSpore's C++ operators.

JPEG photographs of about 500 x 375 become views of 224 x 224: decoded, randomly cropped, scaled,
flipped, (kind "full") with brightness, contrast and saturation jittered, normalized, as float32
(3, 224, 224).

Three implementations: the project's; MindSpore's operators in a C++ pipeline that draws its own
random numbers, as documented; and MindSpore's operators called one by one with random numbers drawn
here, which would keep the seed of each view.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import mindspore.dataset as ds
import numpy as np
from mindspore.dataset import vision
from PIL import Image

from benchmarks import results
from benchmarks.photographs import photographs
from multigrain.data.augment import (
    Augmenter,
    brightness,
    color_jitter,
    contrast,
    random_resized_crop,
    saturation,
)
from multigrain.images.decode import decode_image
from multigrain.images.parameters import IMAGENET_MEAN, IMAGENET_STD
from multigrain.images.preprocess import apply_table
from multigrain.specs.training import AugmentationSpec

SIZE = 224
FILES = 48
MEAN = tuple(255 * value for value in IMAGENET_MEAN)
STD = tuple(255 * value for value in IMAGENET_STD)
SPECS = {
    "plain": AugmentationSpec(kind="plain", lighting=0.0),
    "full": AugmentationSpec(kind="full", lighting=0.0),
}


@dataclass(frozen=True)
class Rate:
    """Images per second of wall time and per second of CPU time of all threads."""

    wall: float
    cpu: float


@contextmanager
def measured(found: list[Rate], done: Callable[[], int]) -> Iterator[None]:
    """Appends the rate of the work done inside the context."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    found.append(Rate(done() / wall, done() / cpu))


def rate(work: Callable[[int], object], seconds: float, threads: int = 1, each: int = 1) -> Rate:
    """Rate of calls of ``work`` from several threads; each call handles ``each`` images."""
    counts = [0] * threads

    def run(thread: int) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            work(thread * 10**6 + counts[thread])
            counts[thread] += 1

    work(0)
    found: list[Rate] = []
    with ThreadPoolExecutor(threads) as pool, measured(found, lambda: each * sum(counts)):
        list(pool.map(run, range(threads)))
    return found[0]


@dataclass(frozen=True)
class Project:
    """The loader's work for one view, or for several copies of an image that is decoded once."""

    files: list[bytes]
    kind: str
    copies: int = 1

    def __call__(self, n: int) -> Any:
        augmenter = Augmenter(SPECS[self.kind], SIZE)
        image = decode_image(self.files[n % FILES])
        for copy in range(self.copies):
            augmenter(image, Random(n * self.copies + copy))


@dataclass(frozen=True)
class Eager:
    """MindSpore's operators one by one, with random numbers drawn as in ``Augmenter``."""

    files: list[bytes]
    kind: str

    def __call__(self, n: int) -> Any:
        random = Random(n)
        image = vision.Decode()(np.frombuffer(self.files[n % FILES], np.uint8))
        image = cut(image, random)
        if random.random() < 0.5:
            image = vision.HorizontalFlip()(image)
        if self.kind == "full":
            for operator in (
                vision.AdjustBrightness,
                vision.AdjustContrast,
                vision.AdjustSaturation,
            ):
                image = operator(random.uniform(0.7, 1.3))(image)
        return vision.HWC2CHW()(vision.Normalize(MEAN, STD)(image))


def cut(image: Any, random: Random) -> Any:
    """A random rectangle, scaled: as ``random_resized_crop``, by one C++ operator."""
    height, width = image.shape[:2]
    while True:
        area = width * height * random.uniform(0.08, 1.0)
        ratio = np.exp(random.uniform(np.log(0.75), np.log(4 / 3)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            break
    left, top = random.randint(0, width - w), random.randint(0, height - h)
    return vision.ResizedCrop(top, left, h, w, (SIZE, SIZE), vision.Inter.LINEAR)(image)


def pipeline_rate(
    files: list[bytes], kind: str, seconds: float, threads: int, *, fused: bool
) -> Rate:
    """Of a C++ pipeline with so many threads for its operators.

    ``fused``: decodes no more of the picture than the cut, which needs operators that draw.
    """
    with TemporaryDirectory() as folder:
        (Path(folder) / "class").mkdir()
        for number, data in enumerate(files):
            (Path(folder) / "class" / f"{number:03d}.jpg").write_bytes(data)
        data = ds.ImageFolderDataset(folder, num_parallel_workers=1, shuffle=False)
        operators: list[Any] = [vision.RandomCropDecodeResize(SIZE)]
        if not fused:
            operators = [vision.Decode(), vision.RandomResizedCrop(SIZE)]
        operators.append(vision.RandomHorizontalFlip(0.5))
        if kind == "full":
            operators.append(vision.RandomColorAdjust(0.3, 0.3, 0.3))
        operators += [vision.Normalize(MEAN, STD), vision.HWC2CHW()]
        data = data.map(operators, "image", num_parallel_workers=threads)
        data = data.batch(FILES, drop_remainder=True).repeat(10**6)
        rows = data.create_tuple_iterator(num_epochs=1, output_numpy=True, do_copy=False)
        for _ in range(20):  # drain what the queues already hold
            next(rows)
        found: list[Rate] = []
        done = 0
        with measured(found, lambda: done):
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                done += len(next(rows)[0])
        rows.stop()
        return found[0]


def _adjusted(adjust: Callable[..., Any], image: Image.Image, _seed: int) -> object:
    return adjust(image, 1.2)


def _mindspore_adjusted(operation: Callable[..., Any], image: Any, _seed: int) -> object:
    return operation(1.2)(image)


def parts(files: list[bytes]) -> Iterator[tuple[str, Callable[[int], Any], Callable[[int], Any]]]:
    """Name, Pillow implementation and MindSpore implementation of each part."""
    whole = decode_image(files[0])
    pixels = np.asarray(whole)
    small = whole.resize((SIZE, SIZE))
    view = np.asarray(small)
    encoded = np.frombuffer(files[0], np.uint8)
    spec = SPECS["plain"]
    table = Augmenter(spec, SIZE)._plain
    yield "decode", lambda _n: decode_image(files[0]), lambda _n: vision.Decode()(encoded)
    yield (
        "crop and scale",
        lambda n: random_resized_crop(whole, SIZE, spec, Random(n)),
        lambda n: cut(pixels, Random(n)),
    )
    yield (
        "flip",
        lambda _n: small.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        lambda _n: vision.HorizontalFlip()(view),
    )
    for name, ours, theirs in (
        ("brightness", brightness, vision.AdjustBrightness),
        ("contrast", contrast, vision.AdjustContrast),
        ("saturation", saturation, vision.AdjustSaturation),
    ):
        yield name, partial(_adjusted, ours, small), partial(_mindspore_adjusted, theirs, view)
    yield (
        "all three in random order",
        lambda n: color_jitter(small, 0.3, Random(n)),
        lambda _n: vision.AdjustSaturation(0.9)(
            vision.AdjustContrast(1.1)(vision.AdjustBrightness(1.2)(view))
        ),
    )
    yield (
        "normalize",
        lambda _n: apply_table(view, table, None),
        lambda _n: vision.HWC2CHW()(vision.Normalize(MEAN, STD)(view)),
    )


def main() -> int:
    parser = results.parser("augmentation")
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of each measurement")
    options = parser.parse_args()
    seconds: float = options.seconds
    report = results.Report("augmentation", options)
    ds.config.set_numa_enable(False)
    files = photographs(FILES)
    implementations: dict[str, Callable[[str, int], Rate]] = {
        "this project": lambda kind, threads: rate(Project(files, kind), seconds, threads),
        "this project, 3 copies of an image": lambda kind, threads: rate(
            Project(files, kind, 3), seconds, threads, each=3
        ),
        "C++ operators one by one": lambda kind, threads: rate(
            Eager(files, kind), seconds, threads
        ),
        "C++ pipeline": lambda kind, threads: pipeline_rate(
            files, kind, seconds, threads, fused=False
        ),
        "C++ pipeline, decoding the crop only": lambda kind, threads: pipeline_rate(
            files, kind, seconds, threads, fused=True
        ),
    }
    for kind in SPECS:
        table = report.table(
            f"Augmentation {kind!r}, about 500 x 375 to 224 x 224",
            ("images per CPU second", "images/s, 1 thread", "2 threads"),
        )
        for name, measure in implementations.items():
            one, two = measure(kind, 1), measure(kind, 2)
            table.row(name, one.cpu, one.wall, two.wall)
    for name, ours, theirs in parts(files):
        pillow, operator = (1000 / rate(work, seconds / 4).cpu for work in (ours, theirs))
        report.compare(
            f"{name}, CPU time", pillow, unit="ms", over=operator, reference="C++ operator"
        )
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())

"""The cost of an 8-bit graph against plain definitions, and the bars that decide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from multigrain.data.image_folder import scan_images
from multigrain.engine.runtimes.base import FloatArray, Outputs, Pixels, Runtime
from multigrain.export.int8_cost import MAX_LOSS, compare_vectors, describe, measure_cost
from multigrain.export.int8_images import Int8Images, Sample
from multigrain.images.parameters import Preprocessing
from tests.images.files import encode, noise

SIZE = 8
P = Preprocessing.standard(SIZE)


def average_precision(similarity: NDArray[np.float64], positives: set[int], own: int) -> float:
    """Trapezoidal, by its definition."""
    order = [i for i in np.argsort(-similarity, kind="stable") if i != own]
    total, found = 0.0, 0
    for rank, index in enumerate(order):
        if index in positives:
            before = found / rank if rank else 1.0
            total += (before + (found + 1) / (rank + 1)) / 2
            found += 1
    return total / len(positives)


def unit(rows: FloatArray) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True))


def test_vectors_are_compared_by_cosines_and_by_searches() -> None:
    random = np.random.default_rng(1)
    groups = np.repeat(np.arange(6), 5)
    groups[-1] = 99  # an image that has nothing to find
    centers = random.normal(size=(100, 16))
    f32 = [(centers[groups] + random.normal(size=(30, 16))).astype(np.float32) for _ in range(2)]
    int8 = [rows + random.normal(scale=0.1, size=rows.shape).astype(np.float32) for rows in f32]
    loss, problems = compare_vectors((f32[0], f32[1]), (int8[0], int8[1]), groups)
    cosines = (unit(f32[0]) * unit(int8[0])).sum(1)
    assert loss.cosine_mean == pytest.approx(cosines.mean(), abs=1e-6)
    assert loss.cosine_min == pytest.approx(cosines.min(), abs=1e-6)
    assert loss.cosine_p1 == pytest.approx(np.percentile(cosines, 1), abs=1e-6)
    for rows, found in ((f32, loss.f32_search), (int8, loss.int8_search)):
        database, queries = unit(rows[0]), unit(rows[1])
        copies = [average_precision(database @ queries[i], {i}, -1) for i in range(30)]
        objects = [
            average_precision(database @ database[i], others, i)
            for i in range(30)
            if (others := set(np.flatnonzero(groups == groups[i]).tolist()) - {i})
        ]
        assert len(objects) == 29
        assert found is not None
        assert found.copy_map == pytest.approx(np.mean(copies), abs=1e-6)
        assert found.object_map == pytest.approx(np.mean(objects), abs=1e-6)
    assert problems == []


def test_each_bar_is_named() -> None:
    random = np.random.default_rng(2)
    groups = np.repeat(np.arange(50), 4)
    rows = (random.normal(size=(50, 32))[groups] + random.normal(size=(200, 32))).astype(np.float32)
    pair = (rows, (rows + 0.1).astype(np.float32))

    def problems(noise: float, share: float = 1.0) -> list[str]:
        hit = random.permutation(200) < 200 * share
        changed = [
            (part + noise * hit[:, None] * random.normal(size=part.shape)).astype(np.float32)
            for part in pair
        ]
        return compare_vectors(pair, (changed[0], changed[1]), groups)[1]

    assert problems(0.01) == []
    far = " ".join(problems(3.0))
    for text in ("a mean cosine of 0.", "a first percentile", "in object mAP (0.", "in copy mAP"):
        assert text in far
    # A few images that change much are seen by the percentile alone.
    few = problems(0.7, share=0.03)
    assert len(few) == 1
    assert few[0].startswith("a first percentile of the cosines of 0.")
    nan = np.full_like(rows, np.nan)
    assert compare_vectors(pair, (nan, rows), groups)[1] == ["non-finite vectors"]


class Colors(Runtime):
    """Embeds an image as its mean color; its scores are the colors, turned by ``turn``."""

    def __init__(self, turn: int = 0) -> None:
        self.turn = turn
        self.name, self.preprocessing, self.best_batch, self.warm_sizes = "colors", P, 8, (1,)

    def run(self, images: FloatArray, *, scores: bool = True) -> Outputs:
        raise NotImplementedError

    def run_pixels(self, images: list[Pixels], *, scores: bool = True) -> Outputs:
        means = np.stack([image.reshape(-1, 3).mean(0) for image in images]).astype(np.float32)
        logits = np.roll(means, self.turn, axis=1)
        return Outputs(means, logits)


def colored(root: Path, each: int) -> Int8Images:
    """Images in red, green and blue, in folders of that name; two damaged ones among them."""
    for number, name in enumerate(("red", "green", "blue")):
        (root / name).mkdir(parents=True)
        for image in range(each):
            pixels = np.asarray(noise(SIZE, SIZE, seed=image)) // 4
            pixels[:, :, number] += 150
            (root / name / f"{image}.png").write_bytes(encode(Image.fromarray(pixels), "PNG"))
    (root / "red" / "broken.png").write_bytes(b"")
    folder = scan_images(root)
    tops = [path.split("/")[0] for path in folder.paths]
    labels = [("red", "green", "blue").index(top) for top in tops]
    sample = Sample(folder, list(range(len(folder))), labels, labels)
    return Int8Images(sample, sample, "validation")


def test_top1_of_both_graphs_is_measured_on_labeled_images(tmp_path: Path) -> None:
    images = colored(tmp_path, 6)
    same = measure_cost("g.xml", (Colors(), Colors()), images, 5, P)
    assert same.problems == ()
    entry = same.entry
    assert (entry.images, entry.labelled_images, entry.calibration_images) == (18, 18, 5)
    assert (entry.held_out, entry.same_top1, entry.cosine_min) == (
        "validation", 1.0, pytest.approx(1.0),
    )  # fmt: skip
    assert entry.f32 == entry.int8
    assert entry.f32 is not None
    assert entry.f32.top1 == 1.0
    assert "18 validation images, cosine 1.0000" in describe(entry)

    other = measure_cost("g.xml", (Colors(), Colors(turn=1)), images, 5, P)
    assert other.entry.int8 is not None
    assert (other.entry.same_top1, other.entry.int8.top1) == (0.0, 0.0)
    (problem,) = other.problems
    assert problem.startswith(
        f"a loss of 1.0000 in top-1 (1.0000 beyond chance), more than {MAX_LOSS}"
    )


class Constant(Colors):
    """All its embeddings are close together, as those of a network may be: cosines of 0.999."""

    def __init__(self, seed: int | None) -> None:
        super().__init__()
        self.random = None if seed is None else np.random.default_rng(seed)

    def run_pixels(self, images: list[Pixels], *, scores: bool = True) -> Outputs:
        means = super().run_pixels(images).embedding / 255
        if self.random is not None:
            means += self.random.normal(scale=1.0, size=means.shape).astype(np.float32)
        return Outputs(means + 40, means)


def test_a_cosine_near_1_does_not_hide_that_neighbors_change_places(tmp_path: Path) -> None:
    images = colored(tmp_path, 30)
    cost = measure_cost("g.xml", (Constant(None), Constant(3)), images, 5, P)
    assert cost.entry.cosine_p1 > 0.99
    assert any("in object mAP" in problem for problem in cost.problems)

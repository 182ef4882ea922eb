"""Copy detection: distortions, ranks and metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from multigrain.data.image_folder import ImageFolder, scan
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.evaluate import distortion
from multigrain.evaluate.all_reduce import AllReduce
from multigrain.evaluate.copy_detection import (
    UNREAD,
    CopyDetectionResult,
    EmbeddingTable,
    evaluate_copies,
)
from multigrain.evaluate.distortion import distort
from multigrain.evaluate.inference import Inference, Transform
from multigrain.evaluate.retrieval import average_precision
from multigrain.images.decode import decode_image
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import preprocess, preprocess_image
from tests.data.datasets import write_dataset
from tests.evaluate.fake_all_reduce import on_workers
from tests.evaluate.networks import Broken, MeanColor
from tests.images.files import noise

pytestmark = pytest.mark.mindspore

P = Preprocessing(size=16, resize_short=18)
T = Transform(P)


def evaluate(
    folder: ImageFolder,
    rank: int = 0,
    world: int = 1,
    all_reduce: AllReduce | None = None,
    seed: int = 5,
) -> CopyDetectionResult:
    inference = Inference(MeanColor(), 4, rank, world, threads=1)
    originals = EmbeddingTable(len(folder))
    load = lambda index: preprocess(folder.read(index), P)  # noqa: E731
    for predictions in inference.run(inference.shard(len(folder)), load, {}):
        originals.add(predictions.indices, predictions.embedding)
    return evaluate_copies(
        inference,
        folder,
        T,
        originals,
        seed=seed,
        all_reduce=all_reduce or AllReduce(1),
        embedding_size=12,
    )


def test_ranks_equal_a_loop_over_queries_and_originals(tmp_path: Path) -> None:
    folder, network = scan(write_dataset(tmp_path, classes=2, each=6)), MeanColor()
    unit = lambda v: v / np.linalg.norm(v)  # noqa: E731
    database = [unit(network.by_hand(preprocess(folder.read(i), P))[0]) for i in range(12)]
    ranks = []
    for index in range(12):
        copy = distort(decode_image(folder.read(index)), Random(5 << 64 | index))
        query = unit(network.by_hand(preprocess_image(copy, P))[0])
        order = sorted(range(12), key=lambda j: (-query @ database[j], j))
        ranks.append(order.index(index))
    result = evaluate(folder)
    assert result.rank.tolist() == ranks
    expected = np.mean([average_precision([rank], 1) for rank in ranks])
    assert result.metrics["copy_map"] == pytest.approx(expected)
    assert result.metrics["copy_recall1"] == np.mean(np.array(ranks) == 0)


@pytest.mark.parametrize("world", [2, 5])
def test_the_result_does_not_depend_on_the_number_of_workers(tmp_path: Path, world: int) -> None:
    folder = scan(write_dataset(tmp_path, classes=2, each=6))
    alone = evaluate(folder)
    for result in on_workers(
        world, lambda rank, all_reduce: evaluate(folder, rank, world, all_reduce)
    ):
        np.testing.assert_array_equal(result.rank, alone.rank)


def test_an_unreadable_image_is_neither_query_nor_in_the_database(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, classes=2, each=3)
    (root / "c0" / "001.png").write_bytes(b"")
    result = evaluate(scan(root))
    assert result.images == 5
    assert result.rank[1] == UNREAD
    assert result.rank.max() <= 4


def test_non_finite_embeddings_fail(tmp_path: Path) -> None:
    folder = scan(write_dataset(tmp_path, classes=1, each=2))
    inference, originals = Inference(Broken(), 2, threads=1), EmbeddingTable(2)
    load = lambda index: preprocess(folder.read(index), P)  # noqa: E731
    for predictions in inference.run(range(2), load, {}):
        originals.add(predictions.indices, predictions.embedding)
    with pytest.raises(MultigrainError) as caught:
        evaluate_copies(
            inference, folder, T, originals, seed=0, all_reduce=AllReduce(1), embedding_size=2
        )
    assert caught.value.kind is ErrorKind.NOT_FINITE


def test_non_finite_embeddings_of_copies_fail(tmp_path: Path) -> None:
    folder = scan(write_dataset(tmp_path, classes=1, each=4))
    originals = EmbeddingTable(4)
    originals.add(np.arange(4), np.eye(4, 2, dtype=np.float32))
    inference = Inference(Broken(), 4, threads=1)
    with pytest.raises(MultigrainError, match="2 of 4 images") as caught:
        evaluate_copies(
            inference, folder, T, originals, seed=0, all_reduce=AllReduce(1), embedding_size=2
        )
    assert caught.value.kind is ErrorKind.NOT_FINITE


def test_a_copy_depends_on_its_seed_and_differs_from_the_original() -> None:
    image = noise(40, 30)
    first, again, other = (np.asarray(distort(image, Random(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (30, 40, 3)
    assert not np.array_equal(first, other)
    for seed in range(30):
        copy = np.asarray(distort(image, Random(seed))).astype(int)
        difference = np.abs(copy - np.asarray(image).astype(int)).mean()
        assert 1 < difference < 100


def test_distortions_have_the_stated_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[float]] = {}

    def watch(owner: object, name: str, of: Callable[..., list[float]]) -> None:
        original = getattr(owner, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            seen.setdefault(name, []).extend(of(*arguments, **options))
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, watched)

    sides = (100, 50)
    watch(Image.Image, "resize", lambda *_, box, **__: [(box[i + 2] - box[i]) / sides[i]
                                                       for i in (0, 1)])  # fmt: skip
    watch(distortion, "rotate", lambda _, degrees: [degrees])
    watch(distortion, "brightness", lambda _, factor: [factor])
    watch(distortion, "contrast", lambda _, factor: [factor])
    watch(ImageFilter, "GaussianBlur", lambda radius: [radius / 50])
    watch(distortion, "_add_noise", lambda _image, std, _seed: [std])
    watch(distortion, "_jpeg", lambda _, quality: [quality])
    image = Image.new("RGB", sides, (90, 140, 60))
    for seed in range(400):
        distort(image, Random(seed))
    ranges = {
        "resize": (0.7, 0.95), "rotate": (-8, 8), "brightness": (0.7, 1.3), "contrast": (0.7, 1.3),
        "GaussianBlur": (0.005, 0.02), "_add_noise": (3, 12), "_jpeg": (30, 90),
    }  # fmt: skip
    for name, (low, high) in ranges.items():
        assert low <= min(seen[name]) < low + 0.1 * (high - low), name
        assert high - 0.1 * (high - low) < max(seen[name]) <= high + 1e-9, name
        always = {"resize": 800, "_jpeg": 400}
        assert len(seen[name]) == always.get(name, pytest.approx(200, abs=40)), name


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2)])
def test_tiny_images_can_be_distorted(size: tuple[int, int]) -> None:
    for seed in range(20):
        assert distort(Image.new("RGB", size, "red"), Random(seed)).size == size

"""Batches of inference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from multigrain.data.image_folder import ImageFolder, scan
from multigrain.evaluate.all_reduce import AllReduce
from multigrain.evaluate.inference import Batches, Inference, Transform
from multigrain.images.decode import decode_image
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import preprocess_rect
from tests.evaluate.fake_all_reduce import on_workers
from tests.evaluate.networks import MeanColor
from tests.images.files import encode, noise

pytestmark = pytest.mark.mindspore

P = Preprocessing(size=16, resize_short=16)
SIZES = [(32, 16), (16, 32), (32, 16), (30, 30), (64, 32), (16, 31), (8, 4), (32, 16), (20, 20)]


def dataset(root: Path) -> ImageFolder:
    (root / "c").mkdir(parents=True)
    for index, size in enumerate(SIZES):
        (root / "c" / f"{index}.png").write_bytes(encode(noise(*size, seed=index), "PNG"))
    (root / "c" / "9.png").write_bytes(b"")
    return scan(root)


def test_batches_have_one_shape_and_do_not_depend_on_the_workers(
    tmp_path: Path,
) -> None:
    folder, rect = dataset(tmp_path), Transform(P, "rect")
    alone = rect.batches(folder, 3, rank=0, world=1, all_reduce=AllReduce(1))
    # 8 x 16 (1 and 5: 31 * 16 // 31), 16 x 8 (0, 2, 4, 6, 7), 16 x 16 (3, 8), unreadable (9).
    assert alone.indices == [[9], [1, 5], [0, 2, 4], [6, 7], [3, 8]]
    assert (alone.fill, len(alone)) == (0, 10)
    shares = on_workers(
        2,
        lambda rank, all_reduce: rect.batches(folder, 3, rank=rank, world=2, all_reduce=all_reduce),
    )
    assert shares[0].indices == alone.indices[::2]
    assert shares[1].indices == alone.indices[1::2]


def test_batches_of_crops_are_padded(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    batches = Transform(P).batches(folder, 4, rank=1, world=2, all_reduce=AllReduce(1))
    assert [list(batch) for batch in batches.indices] == [[1, 3, 5, 7], [9]]
    assert (batches.fill, len(batches)) == (4, 5)


def test_rect_batches_equal_single_images(tmp_path: Path) -> None:
    folder, rect, network = dataset(tmp_path), Transform(P, "rect"), MeanColor()
    unreadable: dict[int, str] = {}
    done: list[int] = []
    inference = Inference(network, 3, threads=1, on_progress=done.append)
    batches = rect.batches(folder, 3, rank=0, world=1, all_reduce=AllReduce(1))
    seen = set()
    for predictions in inference.run_batches(
        batches, lambda index: rect.file(folder, index), unreadable
    ):
        for row, index in enumerate(predictions.indices.tolist()):
            image = preprocess_rect(decode_image(folder.read(index)), P)
            expected = network.by_hand(image)[0]
            np.testing.assert_allclose(predictions.embedding[row], expected, atol=1e-6)
            seen.add(index)
    assert seen == set(range(9))
    assert list(unreadable) == [9]
    assert done == [1, 3, 6, 8, 10]
    assert sorted(network.batch_sizes) == [2, 2, 2, 3]


def test_an_image_with_a_wrong_header_does_not_affect_its_batch(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    batches = Batches([[0, 1, 2]])
    rect = Transform(P, "rect")
    inference = Inference(MeanColor(), 3, threads=1)
    parts = inference.run_batches(batches, lambda index: rect.file(folder, index), {})
    assert [part.indices.tolist() for part in parts] == [[0, 2], [1]]

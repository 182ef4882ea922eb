"""Classification metrics, for any number of workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from multigrain.data.image_folder import scan
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.evaluate.all_reduce import AllReduce
from multigrain.evaluate.classification import UNREAD, ClassificationCounter, ClassificationResult
from multigrain.evaluate.inference import Predictions
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import preprocess
from tests.data.datasets import write_dataset
from tests.evaluate.context import RecordingReporter
from tests.evaluate.fake_all_reduce import on_workers
from tests.evaluate.measure import ALL_TASKS, classify, measure
from tests.evaluate.networks import Broken, MeanColor

pytestmark = pytest.mark.mindspore

P = Preprocessing(size=16, resize_short=18)


@pytest.mark.parametrize("passes", [1, 2])
def test_an_interrupted_evaluation_has_no_metrics(tmp_path: Path, passes: int) -> None:
    folder, done = scan(write_dataset(tmp_path, classes=3, each=5)), list[int]()
    reporter = RecordingReporter(stop_after=1)

    def progress(images: int) -> None:
        done.append(images)
        if len(done) == 4 * (passes - 1) + 1:
            reporter.alive()

    assert measure(
        MeanColor(), folder, P, tasks=ALL_TASKS, on_progress=progress, reporter=reporter
    ) is None  # fmt: skip
    assert done == [4, 8, 12, 15, 4][: 4 * (passes - 1) + 1] if passes == 2 else [4]


def test_metrics_equal_a_loop_over_all_images(tmp_path: Path) -> None:
    folder, network = scan(write_dataset(tmp_path, classes=3, each=5)), MeanColor()
    ranks, losses, predicted, probabilities = [], [], [], []
    for index, label in enumerate(folder.labels):
        _, logits = network.by_hand(preprocess(folder.read(index), P))
        order = sorted(range(6), key=lambda k: (-logits[k], k))
        ranks.append(order.index(label))
        predicted.append(order[0])
        probabilities.append(np.exp(logits).max() / np.exp(logits).sum())
        losses.append(np.log(np.exp(logits).sum()) - logits[label])
    progress: list[int] = []
    result = classify(network, folder, P, on_progress=progress.append)
    assert result.images == 15
    assert result.rank.tolist() == ranks
    assert result.predicted.tolist() == predicted
    np.testing.assert_allclose(result.probability, probabilities, rtol=1e-5)
    assert result.metrics["top1"] == pytest.approx(np.mean(np.array(ranks) == 0))
    assert result.metrics["top5"] == pytest.approx(np.mean(np.array(ranks) < 5))
    assert result.metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert result.per_class() == {
        f"c{c}": np.mean([ranks[i] == 0 for i in range(15) if folder.labels[i] == c])
        for c in range(3)
    }
    confusion = result.confusion()
    assert confusion.sum() == 15
    for i in range(3):
        for j in range(confusion.shape[1]):
            pairs = zip(folder.labels, predicted, strict=True)
            assert confusion[i, j] == sum(a == i and b == j for a, b in pairs)
    # 15 images in batches of 4: the last one is padded, and all have one shape.
    assert network.batch_sizes == [4, 4, 4, 4]
    assert progress == [4, 8, 12, 15]


@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_metrics_do_not_depend_on_the_number_of_workers(tmp_path: Path, world: int) -> None:
    folder = scan(write_dataset(tmp_path, classes=3, each=5))

    def work(rank: int, all_reduce: AllReduce) -> ClassificationResult:
        return classify(MeanColor(), folder, P, rank=rank, world=world, all_reduce=all_reduce)

    alone = classify(MeanColor(), folder, P)
    for result in on_workers(world, work):
        assert result.images == 15
        np.testing.assert_array_equal(result.rank, alone.rank)
        np.testing.assert_allclose(result.loss, alone.loss, rtol=1e-5)
        assert result.metrics["top1"] == alone.metrics["top1"]


def test_unreadable_images_are_reported_and_in_no_metric(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, classes=3, each=5)
    (root / "c1" / "002.png").write_bytes(b"not an image")
    found = measure(MeanColor(), scan(root), P)
    assert found is not None
    assert list(found.unreadable) == [7]
    result = found.classification
    assert result is not None
    assert result.images == found.images == 14
    assert len(result.rank) - result.images == 1
    assert result.rank[7] == UNREAD
    assert result.confusion().sum() == 14
    # As if the file were not there.
    (root / "c1" / "002.png").unlink()
    without = classify(MeanColor(), scan(root), P)
    assert result.metrics == pytest.approx(without.metrics, rel=1e-6)
    assert result.per_class() == without.per_class()


def test_a_batch_without_readable_images_is_skipped(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, classes=2, each=4)
    for path in (root / "c0").iterdir():
        path.write_bytes(b"")
    assert classify(MeanColor(), scan(root), P).images == 4


def test_a_dataset_without_any_readable_image_is_refused(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, classes=1, each=2)
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(MultigrainError, match="none of the 2 images") as caught:
        classify(MeanColor(), scan(root), P)
    assert caught.value.kind is ErrorKind.DATASET


def test_non_finite_outputs_fail(tmp_path: Path) -> None:
    folder = scan(write_dataset(tmp_path, classes=2, each=4))
    with pytest.raises(MultigrainError, match="4 of 8 images") as caught:
        classify(Broken(), folder, P)
    assert caught.value.kind is ErrorKind.NOT_FINITE


def test_equal_logits_are_ranked_by_class_index(tmp_path: Path) -> None:
    folder = scan(write_dataset(tmp_path, classes=3, each=1))
    counter = ClassificationCounter(folder)
    logits = np.ones((3, 4), np.float32)
    counter.add(Predictions(np.arange(3), np.zeros((3, 2), np.float32), logits))
    result = counter.result(AllReduce(1))
    assert result.rank.tolist() == [0, 1, 2]
    assert result.metrics["loss"] == pytest.approx(np.log(4))


def test_the_networks_training_mode_is_restored(tmp_path: Path) -> None:
    folder, network = scan(write_dataset(tmp_path, classes=1, each=1)), MeanColor()
    for mode in (True, False):
        network.set_train(mode)
        classify(network, folder, P)
        assert network.training is mode

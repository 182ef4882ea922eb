"""Rankings and metrics of benchmarks against loops and manual computations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from multigrain.data.benchmarks import Benchmark, list_benchmark
from multigrain.errors import MultigrainError
from multigrain.evaluate.all_reduce import AllReduce
from multigrain.evaluate.retrieval import BenchmarkResult, Ranker, Ranking
from multigrain.evaluate.search import l2_normalize
from multigrain.specs.evaluation import Task
from tests.data.benchmarks.files import touch
from tests.evaluate.fake_all_reduce import on_workers

NAMES: dict[Task, list[str]] = {
    "holidays": [f"100{g}{i:02d}.jpg" for g in range(8) for i in range(3)],
    "ukb": [f"ukbench{number:05d}.jpg" for number in range(24)],
    "copydays": [*(f"original/20{g:02d}00.jpg" for g in range(6)),
                 *(f"strong/20{g:02d}{i:02d}.jpg" for g in range(6) for i in (1, 2)),
                 *(f"distractors/{i}.jpg" for i in range(9))],
    "groups": [f"{'abcd'[i % 4]}/{i}.jpg" for i in range(21)],
}  # fmt: skip


def benchmark_of(task: Task, root: Path) -> Benchmark:
    return list_benchmark(task, touch(root, NAMES[task]))


def angles(*degrees: float) -> NDArray[np.float32]:
    """Vectors on a half circle: the smaller the difference, the more similar."""
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def search(benchmark: Benchmark, rows: NDArray[np.float32], **options: int) -> BenchmarkResult:
    present = np.ones(len(benchmark), np.bool_)
    ranking = Ranker(benchmark, rows, present, **options).rank(AllReduce(1))
    assert ranking is not None
    return BenchmarkResult(benchmark, ranking, present)


def by_loops(
    benchmark: Benchmark, rows: NDArray[np.float32], present: NDArray[np.bool_]
) -> dict[str, float]:
    """The published protocols, one pair of images at a time."""
    labels = benchmark.folder.labels
    precisions, found4, firsts = [], [], []
    for query in benchmark.queries.tolist():
        if not present[query]:
            continue
        candidates = []
        for image in range(len(benchmark)):
            if not present[image] or not benchmark.database[image]:
                continue
            if benchmark.task != "ukb" and image == query:
                continue
            distance = sum((float(a) - float(b)) ** 2
                           for a, b in zip(rows[query], rows[image], strict=True))  # fmt: skip
            candidates.append((distance, image))
        candidates.sort()
        relevant = [labels[image] == labels[query] for _, image in candidates]
        if not any(relevant):
            continue
        precision, hits = 0.0, 0
        for rank, right in enumerate(relevant):
            if right:
                before = hits / rank if rank else 1.0
                hits += 1
                precision += (before + hits / (rank + 1)) / 2
        precisions.append(precision / hits)
        found4.append(sum(relevant[:4]))
        firsts.append(relevant[0])
    task = benchmark.task
    if task == "ukb":
        return {"ukb_recall4": float(np.mean(found4))}
    figures = {f"{task}_map": float(np.mean(precisions))}
    return {**figures, "groups_recall1": float(np.mean(firsts))} if task == "groups" else figures


@pytest.mark.parametrize("task", list(NAMES))
@pytest.mark.parametrize("block", [1, 70, 2**23])
def test_metrics_equal_loops_over_all_pairs(tmp_path: Path, task: Task, block: int) -> None:
    benchmark = benchmark_of(task, tmp_path)
    random = np.random.default_rng(7)
    centers = random.normal(size=(len(benchmark.folder.classes), 6))
    rows = centers[benchmark.folder.labels] + random.normal(size=(len(benchmark), 6))
    rows = l2_normalize(rows.astype(np.float32))
    present = random.random(len(benchmark)) < 0.8
    expected = by_loops(benchmark, rows, present)
    assert min(expected.values()) > 0.05
    rows[~present] = 0.0
    ranking = Ranker(benchmark, rows, present, block).rank(AllReduce(1))
    assert ranking is not None
    assert BenchmarkResult(benchmark, ranking, present).metrics == pytest.approx(
        expected, abs=1e-12
    )


@pytest.mark.parametrize("task", list(NAMES))
@pytest.mark.parametrize("world", [2, 3])
def test_several_workers_rank_like_one(tmp_path: Path, task: Task, world: int) -> None:
    benchmark = benchmark_of(task, tmp_path)
    random = np.random.default_rng(1)
    rows = l2_normalize(random.normal(size=(len(benchmark), 3)).astype(np.float32))
    present = random.random(len(benchmark)) < 0.9

    def work(rank: int, all_reduce: AllReduce) -> Ranking | None:
        return Ranker(benchmark, rows, present, block=60).rank(all_reduce, rank=rank, world=world)

    alone = Ranker(benchmark, rows, present, block=60).rank(AllReduce(1))
    for ranking in on_workers(world, work):
        assert ranking is not None
        for name in Ranking.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(ranking, name), getattr(alone, name))


def test_holidays_equals_a_manual_computation(tmp_path: Path) -> None:
    names = ["100000.jpg", "100001.jpg", "100002.jpg", "100100.jpg", "100101.jpg"]
    benchmark = list_benchmark("holidays", touch(tmp_path, names))
    # From 100000: 100001 at 10 degrees, 100100 at 20, 100002 at 30: ranks 0 and 2.
    # From 100100: 100001 and 100002 at 10 are as near, 100000 at 20, 100101 at 50: rank 3.
    result = search(benchmark, angles(0, 10, 30, 20, 70))
    assert result.ranking.ranks[:, :2].tolist() == [[0, 2], [3, -1]]
    first = (1 + (1 / 2 + 2 / 3) / 2) / 2
    second = (0 + 1 / 4) / 2
    assert result.metrics == {"holidays_map": pytest.approx((first + second) / 2, abs=1e-12)}


def test_a_query_is_excluded_by_index_not_by_similarity(tmp_path: Path) -> None:
    # The distractor 100100 is identical to the query and ranks before the positive.
    names = ["100000.jpg", "100001.jpg", "100101.jpg"]
    benchmark = list_benchmark("holidays", touch(tmp_path, names))
    result = search(benchmark, angles(0, 5, 0))
    assert result.ranking.ranks[0, 0] == 1
    assert result.metrics["holidays_map"] == 0.25
    assert result.ranking.first.tolist() == [2]


def test_equally_similar_images_are_ranked_by_their_index(tmp_path: Path) -> None:
    benchmark = list_benchmark("groups", touch(tmp_path, ["a/1.jpg", "a/2.jpg", "b/1.jpg"]))
    rows = l2_normalize(np.random.default_rng(0).normal(size=(1, 257)).astype(np.float32))
    result = search(benchmark, np.repeat(rows, 3, axis=0))
    # All images are identical: from a/1, a/2 is before b/1; from a/2, a/1 is.
    assert result.metrics == {"groups_map": 1.0, "groups_recall1": 1.0}
    other = list_benchmark("groups", touch(tmp_path / "2", ["b/1.jpg", "b/2.jpg", "a/1.jpg"]))
    assert search(other, np.repeat(rows, 3, axis=0)).metrics == {
        "groups_map": 0.25, "groups_recall1": 0.0,
    }  # fmt: skip


def test_ukb_counts_the_query_itself_among_the_first_four(tmp_path: Path) -> None:
    benchmark = list_benchmark(
        "ukb", touch(tmp_path, (f"ukbench{number:05d}.jpg" for number in range(8)))
    )
    perfect = search(benchmark, angles(0, 1, 2, 3, 90, 91, 92, 93))
    assert perfect.metrics == {"ukb_recall4": 4.0}
    # Image 3 is among the other object: 0, 1 and 2 find each other and 4 (3 of 4), 3 finds
    # itself and three others (1), 4 to 7 find themselves, two of their object, and 3 or each
    # other.
    rows = angles(0, 1, 2, 92.4, 90, 91, 92, 93)
    result = search(benchmark, rows)
    assert result.ranking.in_top4.tolist()[:4] == [3, 3, 3, 1]
    expected = by_loops(benchmark, rows, np.ones(8, np.bool_))
    assert result.metrics == pytest.approx(expected, abs=1e-12)


def test_copydays_does_not_rank_other_queries(tmp_path: Path) -> None:
    names = ["original/200000.jpg", "original/200100.jpg", "strong/200001.jpg",
             "strong/200002.jpg", "distractors/a.jpg"]  # fmt: skip
    benchmark = list_benchmark("copydays", touch(tmp_path, names))
    # 200001 is next to 200002, but only the distractor is before its original.
    result = search(benchmark, angles(0, 90, 20, 21, 25))
    assert result.ranking.ranks[:, 0].tolist() == [1, 1]
    assert result.metrics == {"copydays_map": 0.25}


def test_a_query_without_readable_positives_is_not_scored(tmp_path: Path) -> None:
    benchmark = list_benchmark(
        "groups", touch(tmp_path, ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"])
    )
    present = np.array([True, False, True, True])
    ranking = Ranker(benchmark, angles(0, 0, 50, 60), present).rank(AllReduce(1))
    assert ranking is not None
    assert ranking.scored.tolist() == [False, False, True, True]
    result = BenchmarkResult(benchmark, ranking, present)
    assert (result.queries, result.images) == (2, 3)
    # From b/1 at 50: b/2 at 60 before a/1 at 0.
    assert result.metrics == {"groups_map": 1.0, "groups_recall1": 1.0}
    nothing = Ranker(benchmark, angles(0, 0, 0, 0), np.zeros(4, np.bool_)).rank(AllReduce(1))
    assert nothing is not None
    with pytest.raises(MultigrainError, match="no query"):
        _ = BenchmarkResult(benchmark, nothing, np.zeros(4, np.bool_)).metrics


def test_metrics_of_large_groups_use_all_ranks(tmp_path: Path) -> None:
    names = [*(f"a/{i:03d}.jpg" for i in range(130)), *(f"b/{i:03d}.jpg" for i in range(20))]
    benchmark = list_benchmark("groups", touch(tmp_path, names))
    rows = l2_normalize(np.random.default_rng(2).normal(size=(150, 4)).astype(np.float32))
    result = search(benchmark, rows)
    assert result.ranking.ranks.shape == (150, 100)
    expected = by_loops(benchmark, rows, np.ones(150, np.bool_))
    assert result.metrics == pytest.approx(expected, abs=1e-12)


def test_a_stop_request_ends_the_ranking(tmp_path: Path) -> None:
    benchmark = benchmark_of("ukb", tmp_path)
    ranker = Ranker(benchmark, angles(*range(24)), np.ones(24, np.bool_), block=24)
    asked = iter([False, False, True])
    assert ranker.rank(AllReduce(1), should_stop=lambda: next(asked)) is None

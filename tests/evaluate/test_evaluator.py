"""All tasks of a forward pass, on any number of workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from multigrain.data.image_folder import scan
from multigrain.evaluate.all_reduce import AllReduce
from multigrain.evaluate.evaluator import EvaluationResult
from multigrain.images.parameters import Preprocessing
from multigrain.specs.evaluation import TASK_METRICS
from tests.data.datasets import write_dataset
from tests.evaluate.fake_all_reduce import on_workers
from tests.evaluate.measure import ALL_TASKS, measure
from tests.evaluate.networks import MeanColor

pytestmark = pytest.mark.mindspore

P = Preprocessing(size=16, resize_short=18)


@pytest.mark.parametrize("world", [2, 3])
def test_all_metrics_are_independent_of_the_number_of_workers(tmp_path: Path, world: int) -> None:
    root = write_dataset(tmp_path, classes=3, each=5)
    (root / "c1" / "003.png").write_bytes(b"")
    folder = scan(root)

    def work(
        rank: int = 0, all_reduce: AllReduce | None = None, world: int = 1
    ) -> EvaluationResult:
        found = measure(
            MeanColor(), folder, P, tasks=ALL_TASKS, rank=rank, world=world, all_reduce=all_reduce
        )
        assert found is not None
        return found

    alone = work()
    assert list(alone.metrics) == [name for task in ALL_TASKS for name in TASK_METRICS[task]]
    assert 0 < alone.metrics["groups_map"] < 1
    for found in on_workers(world, lambda rank, all_reduce: work(rank, all_reduce, world)):
        assert (found.images, found.total) == (14, 15)
        assert found.metrics.pop("loss") == pytest.approx(alone.metrics["loss"], rel=1e-5)
        assert found.metrics | {"loss": 0.0} == alone.metrics | {"loss": 0.0}


@pytest.mark.parametrize("task", ALL_TASKS)
def test_a_task_alone_gives_the_same_result_as_with_others(tmp_path: Path, task: str) -> None:
    folder = scan(write_dataset(tmp_path, classes=3, each=4))
    together = measure(MeanColor(), folder, P, tasks=ALL_TASKS)
    alone = measure(MeanColor(), folder, P, tasks=(task,))
    assert together is not None
    assert alone is not None
    assert alone.metrics.items() <= together.metrics.items()
    assert list(alone.metrics) == list(TASK_METRICS[task])

"""The specification's fields reach the components of an evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from multigrain.evaluate import job
from multigrain.evaluate.inference import Transform
from multigrain.images.parameters import Preprocessing
from multigrain.specs.evaluation import EvaluationSpec
from tests.data.datasets import write_dataset
from tests.evaluate.context import context, write_checkpoint

pytestmark = pytest.mark.mindspore


class EnoughSeenError(Exception):
    """Ends a job after its components were created."""


def test_every_specification_field_reaches_its_component(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def evaluator(*arguments: Any, **options: Any) -> None:
        seen["arguments"], seen["options"] = arguments, options
        raise EnoughSeenError

    def restore(*arguments: Any, **options: Any) -> Any:
        seen["restored"] = restored(*arguments, **options)
        return seen["restored"]

    restored = job.restore
    monkeypatch.setattr(job, "Evaluator", evaluator)
    monkeypatch.setattr(job, "restore", restore)
    root = write_dataset(tmp_path / "data", classes=2, each=3)
    (root / "c0").rename(root / "c2")  # the network's second and third class
    checkpoint = write_checkpoint(tmp_path / "checkpoints", ("c0", "c1", "c2"))
    spec = EvaluationSpec.model_validate(
        {
            "dataset_path": str(root),
            "tasks": ("classification", "groups"),
            "resolution": 24,
            "gem_p": 2.0,
            "batch_size": 7,
            "seed": 9,
            "transform": "rect",
            "group_queries": "first",
            "devices": {"threads_per_worker": 2},
        }
    )
    ctx = replace(context(tmp_path, weights=checkpoint, evaluation=spec), rank=1, world=3)
    with pytest.raises(EnoughSeenError):
        job.run_evaluation(ctx)
    folder, tasks, benchmark, transform, reporter, *numbers = seen["arguments"]
    assert seen["restored"].network.pool.value == 2.0
    assert folder.labels.tolist() == [1, 1, 1, 2, 2, 2]
    assert tasks == ("classification", "groups")
    assert benchmark.queries.tolist() == [0, 3]
    assert transform == Transform(Preprocessing.standard(24, center_crop=1.0), "rect")
    assert reporter is ctx.reporter
    assert numbers == [7, 1, 3]
    assert seen["options"] == {"threads": 2, "seed": 9}

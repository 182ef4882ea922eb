"""A dataset's layout is checked for the tasks that need it, when a job is submitted."""

from __future__ import annotations

from pathlib import Path

import grpc.aio
import pytest

from multigrain.v1.evaluation_pb2 import StartEvaluationRequest
from multigrain.v1.evaluation_pb2_grpc import EvaluationServiceStub
from multigrain.v1.evaluation_spec_pb2 import EvaluationSpec
from multigrain.v1.job_pb2 import Job
from tests.data.benchmarks.files import touch

LAYOUTS = {
    "holidays": ["100000.jpg", "100001.jpg"],
    "ukb": [f"full/ukbench{number:05d}.jpg" for number in range(4)],
    "copydays": ["original/200000.jpg", "strong/200001.jpg", "distractors/a.jpg"],
    "groups": ["a/1.jpg", "a/2.jpg", "b/1.jpg"],
}


async def _start(channel: grpc.aio.Channel, root: Path, *tasks: str) -> Job:
    spec = EvaluationSpec(dataset_path=str(root), tasks=tasks, transform="rect")
    # A bare file says nothing of its classes; whether it is one is the job's business.
    spec.weights.checkpoint_path = str(root)
    return await EvaluationServiceStub(channel).StartEvaluation(StartEvaluationRequest(spec=spec))


@pytest.mark.parametrize("task", list(LAYOUTS))
async def test_a_benchmark_needs_no_class_folders_but_its_own_layout(
    channel: grpc.aio.Channel, tmp_path: Path, task: str
) -> None:
    root = touch(tmp_path / "images" / task, LAYOUTS[task])
    job = await _start(channel, root, task)
    assert (list(job.evaluation.tasks), job.evaluation.transform) == ([task], "rect")
    assert job.evaluation.group_queries == "all"


@pytest.mark.parametrize(
    ("task", "names", "words"),
    [
        ("holidays", ["cat/1.jpg"], "no images named as in INRIA Holidays (100000.jpg"),
        ("ukb", LAYOUTS["ukb"][:3], "the first missing one is ukbench00003"),
        ("copydays", LAYOUTS["copydays"][:1], "has no folder 'strong': Copydays needs"),
        ("groups", ["a/1.jpg", "b/1.jpg"], "put the images of each group into a sub-folder"),
        ("groups", ["1.jpg"], "has no class folders (1 images are directly in it)"),
    ],
)
async def test_another_layout_is_refused_with_the_remedy(
    channel: grpc.aio.Channel, tmp_path: Path, task: str, names: list[str], words: str
) -> None:
    root = touch(tmp_path / "images" / "other", names)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _start(channel, root, task)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, caught.value
    assert "spec.dataset_path" in str(caught.value.details())
    assert words in str(caught.value.details())

"""Runs an evaluation in the test process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from multigrain.data.benchmarks import of_folder
from multigrain.data.image_folder import ImageFolder
from multigrain.evaluate.all_reduce import AllReduce
from multigrain.evaluate.classification import ClassificationResult
from multigrain.evaluate.evaluator import EvaluationResult, Evaluator
from multigrain.evaluate.inference import Transform
from multigrain.images.parameters import Preprocessing
from multigrain.specs.evaluation import Task
from tests.evaluate.context import RecordingReporter

ALL_TASKS: tuple[Task, ...] = ("classification", "copy_detection", "groups")


@dataclass
class _Progress:
    done: Callable[[int], None] = lambda _images: None

    def next_pass(self) -> None:
        pass


def measure(
    network: Any,
    folder: ImageFolder,
    preprocessing: Preprocessing,
    *,
    tasks: tuple[Task, ...] = ("classification",),
    batch_size: int = 4,
    rank: int = 0,
    world: int = 1,
    all_reduce: AllReduce | None = None,
    on_progress: Callable[[int], None] = lambda _images: None,
    reporter: Any = None,
) -> EvaluationResult | None:
    """Evaluates tasks; "groups" are the class folders."""
    evaluator = Evaluator(
        folder,
        tasks,
        of_folder(folder) if "groups" in tasks else None,
        Transform(preprocessing),
        reporter or RecordingReporter(),
        batch_size,
        rank,
        world,
        threads=1,
        all_reduce=all_reduce,
    )
    return evaluator.run(network, network.embedding_size, _Progress(on_progress))


def classify(
    network: Any, folder: ImageFolder, preprocessing: Preprocessing, **options: Any
) -> ClassificationResult:
    """The result of classification."""
    found = measure(network, folder, preprocessing, **options)
    assert found is not None
    assert found.classification is not None
    return found.classification

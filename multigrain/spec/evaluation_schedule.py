"""Evaluation while training: what contradicts itself."""

from __future__ import annotations

from collections.abc import Iterator

from multigrain.errors import FieldViolation
from multigrain.spec.evaluation import FOLDER_TASKS, TASK_METRICS
from multigrain.spec.training import TrainingSpec

_ON_VAL = ("classification", "copy_detection")


def check_evaluation_schedule(spec: TrainingSpec) -> Iterator[FieldViolation]:
    """Contradictions in the ``evaluation`` of a training that evaluates."""
    schedule = spec.evaluation
    if not schedule.tasks:
        yield _v("evaluation.tasks", "is empty: name at least one task")
        return
    searches = [task for task in schedule.tasks if task not in _ON_VAL]
    if len(set(schedule.tasks)) != len(schedule.tasks):
        yield _v("evaluation.tasks", "names one more than once")
    elif len(searches) > 1:
        yield _v(
            "evaluation.tasks",
            f"{' and '.join(repr(task) for task in searches)} search different folders; name one "
            "of them, and evaluate the others in jobs of their own",
        )
    for task in searches:
        if task not in FOLDER_TASKS and not schedule.retrieval_path:
            yield _v("evaluation.retrieval_path", f"required: the folder of the task '{task}'")
    if schedule.retrieval_path and not searches:
        yield _v(
            "evaluation.retrieval_path",
            "is searched by no task: add 'groups' to evaluation.tasks, or the benchmark whose "
            "images they are",
        )
    on_val = [t for t in schedule.tasks if t in _ON_VAL or not schedule.retrieval_path]
    if on_val and not spec.dataset.val_path and not (set(on_val) - FOLDER_TASKS):
        yield _v(
            "dataset.val_path",
            f"required, as evaluation.every_epochs is {schedule.every_epochs}; "
            "set evaluation.every_epochs to 0 to train without evaluation",
        )
    measured = [name for task in dict.fromkeys(schedule.tasks) for name in TASK_METRICS[task]]
    if schedule.metric not in measured:
        owner = next(task for task, names in TASK_METRICS.items() if schedule.metric in names)
        yield _v(
            "evaluation.metric",
            f"is '{schedule.metric}', which the task '{owner}' measures: add that to "
            f"evaluation.tasks, or name one of {', '.join(measured)}",
        )


def _v(path: str, message: str) -> FieldViolation:
    return FieldViolation(f"spec.{path}", message)

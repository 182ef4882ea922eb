"""Retrieval benchmarks on disk: which images there are, and which should find which."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from multigrain.data.benchmarks.benchmark import Benchmark
from multigrain.data.benchmarks.copydays import list_copydays
from multigrain.data.benchmarks.groups import list_groups
from multigrain.data.benchmarks.holidays import list_holidays
from multigrain.data.benchmarks.ukb import list_ukb
from multigrain.spec.evaluation import Task

__all__ = ["RETRIEVAL_TASKS", "Benchmark", "list_benchmark"]

RETRIEVAL_TASKS: frozenset[Task] = frozenset({"groups", "holidays", "ukb", "copydays"})


def list_benchmark(
    task: Task, root: Path, group_queries: Literal["all", "first"] = "all"
) -> Benchmark:
    """The benchmark of a retrieval task. Only names are looked at; no file is opened.

    Args:
        task: one of RETRIEVAL_TASKS.
        root: folder of the images.
        group_queries: of the task "groups": every image of a group is a query, or its first.

    Raises:
        MultigrainError: DATASET if the folder has not the layout that the task needs.
    """
    if task == "holidays":
        return list_holidays(root)
    if task == "ukb":
        return list_ukb(root)
    if task == "copydays":
        return list_copydays(root)
    if task == "groups":
        return list_groups(root, group_queries)
    raise ValueError(f"{task} is no retrieval task")

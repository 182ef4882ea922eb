"""What a worker does for each kind of job. Imported when it is needed: it brings MindSpore."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from multigrain.jobs.context import Outcome, WorkerContext
from multigrain.jobs.request import JobKind

Work = Callable[[WorkerContext], Outcome]

_WORK = {
    JobKind.TRAINING: "multigrain.train:run",
    JobKind.EVALUATION: "multigrain.evaluate:run",
    JobKind.EXPORT: "multigrain.export:run",
}


def work_of(kind: JobKind) -> Work:
    """The function that does a job of this kind."""
    return load_work(_WORK[kind])


def load_work(name: str) -> Work:
    """The function that ``"module:function"`` names."""
    module, _, function = name.partition(":")
    work: Work = getattr(import_module(module), function)
    return work

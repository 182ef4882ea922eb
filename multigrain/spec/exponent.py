"""The task "gem_p": what it cannot be combined with."""

from __future__ import annotations

import math
from collections.abc import Iterator

from multigrain.errors import FieldViolation
from multigrain.spec.evaluation import EvaluationSpec


def check_exponent(spec: EvaluationSpec) -> Iterator[FieldViolation]:
    """Contradictions in an evaluation specification with the task "gem_p"."""
    if len(set(spec.tasks)) > 1:
        yield _v(
            "tasks",
            "'gem_p' looks at training images, the others score held-out ones: make it a job of "
            "its own",
        )
    if spec.transform != "crop":
        yield _v("transform", f"is '{spec.transform}'; the task 'gem_p' has 'crop' only")
    if spec.whiten:
        yield _v("whiten", "a whitening belongs to one gem_p; the task 'gem_p' compares several")
    candidates = spec.exponent.candidates
    for number, p in enumerate(candidates):
        if p < 1:
            yield _v(f"exponent.candidates[{number}]", f"is {p:g}, must be at least 1")
    if len(set(candidates)) != len(candidates):
        yield _v("exponent.candidates", "names one more than once")
    if spec.exponent.method == "search":
        if spec.gem_p:
            yield _v("gem_p", "is what is searched: leave it out, or name it a candidate")
        return
    if math.isinf(spec.gem_p):
        yield _v("gem_p", "an infinite gem_p has no gradient; start from a finite one")
    if spec.devices.count != 1:
        yield _v("devices.count", f"is {spec.devices.count}; the method 'finetune' has one worker")


def _v(path: str, message: str) -> FieldViolation:
    return FieldViolation(f"spec.{path}", message)

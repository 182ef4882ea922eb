"""Checks of specifications across fields: values that are valid alone, but not together."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from typing import get_args

from multigrain.errors import FieldViolation
from multigrain.specs.base import DeviceSpec, Spec, WeightsSource
from multigrain.specs.evaluation import FOLDER_TASKS, TASK_METRICS, EvaluationSpec, Task
from multigrain.specs.export import ExportSpec
from multigrain.specs.training import OptimizerSpec, ScheduleSpec, ThorSpec, TrainingSpec, TrunkName
from multigrain.specs.violations import nearest

# Only GeM's p may be infinite, which is max pooling.
_MAY_BE_INFINITE = frozenset({"spec.model.gem_p", "spec.gem_p", "spec.resolutions[].gem_p"})
_SMALLEST_IMAGE = 16
_SOURCES = ("job_id", "checkpoint_path", "model")
_EXPORT_SOURCES = ("job_id", "checkpoint_path")
# Tasks of scheduled evaluations on dataset.val_path.
_ON_VAL = ("classification", "copy_detection")


def check_training(spec: TrainingSpec) -> list[FieldViolation]:
    """Returns all violations in a training specification."""
    return [
        *_infinities(spec),
        *_training_paths(spec),
        *_model(spec),
        *_objective(spec),
        *_crops(spec),
        *_schedule(spec.schedule),
        *_thor(spec.optimizer.thor),
        *_precision(spec),
        *_loss_scale(spec.optimizer),
        *_devices(spec.devices),
    ]


def check_evaluation(spec: EvaluationSpec) -> list[FieldViolation]:
    """Returns all violations in an evaluation specification."""
    found = [*_infinities(spec), *_weights(spec.weights), *_devices(spec.devices)]
    if not spec.dataset_path:
        found.append(
            _violation(
                "dataset_path",
                "required: the folder of the images; or give weights of a training job of this "
                "server that held images out",
            )
        )
    if spec.held_out and not FOLDER_TASKS.issuperset(spec.tasks):
        found.append(
            _violation("held_out", "is set, but a published benchmark has a folder of its own")
        )
    found += _network(spec.trunk, spec.gem_p, spec.resolution)
    found += _duplicates("tasks", spec.tasks)
    found += _layouts(spec.tasks)
    if "gem_p" in spec.tasks:
        found += _gem_p_task(spec)
    if spec.whiten and not spec.weights.model:
        found.append(_violation("whiten", "only models have a whitening; set weights.model"))
    if spec.whiten and spec.gem_p:
        found.append(
            _violation("whiten", "the whitening was fitted with the model's gem_p: omit gem_p")
        )
    return found


def check_export(spec: ExportSpec) -> list[FieldViolation]:
    """Returns all violations in an export specification."""
    weights = _weights(spec.weights, _EXPORT_SOURCES)
    found = [*_infinities(spec), *weights, *_devices(spec.devices)]
    if spec.weights.model:
        found.append(
            _violation("weights.model", "is already an exported bundle; give a job or a checkpoint")
        )
    if not spec.model_name:
        found.append(_violation("model_name", "required: the model's name in the registry"))
    if spec.devices.count != 1:
        found.append(
            _violation("devices.count", f"is {spec.devices.count}, must be 1 for an export")
        )
    found += _network(spec.trunk, spec.gem_p, spec.resolution)
    found += _resolutions(spec)
    found += _duplicates("formats", spec.formats)
    if spec.int8 == "off" and spec.int8_path:
        found.append(_violation("int8_path", "is set, but int8 is off: leave one of them out"))
    return found


def _violation(path: str, message: str) -> FieldViolation:
    return FieldViolation(f"spec.{path}", message)


def _infinities(spec: Spec, path: str = "spec") -> Iterator[FieldViolation]:
    for name in type(spec).model_fields:
        value, here = getattr(spec, name), f"{path}.{name}"
        if isinstance(value, Spec):
            yield from _infinities(value, here)
            continue
        items = value if isinstance(value, tuple) else (value,)
        for position, number in enumerate(items):
            if isinstance(number, Spec):
                yield from _infinities(number, f"{here}[{position}]")
            elif isinstance(number, float) and not math.isfinite(number):
                if math.isnan(number) or re.sub(r"\d+", "", here) not in _MAY_BE_INFINITE:
                    yield FieldViolation(here, f"is {number}, must be a finite number")
            elif isinstance(number, str) and "\0" in number:
                yield FieldViolation(here, "has a NUL character")


def _training_paths(spec: TrainingSpec) -> Iterator[FieldViolation]:
    if not spec.dataset.train_path:
        yield _violation(
            "dataset.train_path", "required: the folder with one sub-folder of images per class"
        )
    if spec.dataset.val_path and spec.dataset.val_fraction:
        yield _violation(
            "dataset.val_fraction",
            f"is {spec.dataset.val_fraction:g}, but dataset.val_path names the held-out images: "
            "give one of them",
        )
    if spec.evaluation.every_epochs > 0:
        yield from _evaluation_schedule(spec)
    elif spec.evaluation.patience > 0:
        yield _violation(
            "evaluation.patience",
            f"is {spec.evaluation.patience}, but nothing is evaluated during training: set "
            "evaluation.every_epochs and hold out images, or leave it out",
        )


def _model(spec: TrainingSpec) -> Iterator[FieldViolation]:
    if spec.model.learn_gem_p and math.isinf(spec.model.gem_p):
        yield _violation(
            "model.learn_gem_p", "an infinite gem_p has no gradient; set a finite gem_p"
        )


def _objective(spec: TrainingSpec) -> Iterator[FieldViolation]:
    repeats, batch = spec.augmentation.repeats, spec.schedule.batch_size
    weight, instance = spec.objective.classification_weight, spec.objective.instance_loss
    if instance == "none" and weight < 1:
        yield _violation(
            "objective.classification_weight",
            f"is {weight}, must be 1 with instance_loss 'none', because there is no other loss",
        )
    if batch < repeats:
        yield _violation(
            "schedule.batch_size",
            f"is {batch}, must be at least augmentation.repeats ({repeats})",
        )
    elif batch % repeats:
        below = batch - batch % repeats
        yield _violation(
            "schedule.batch_size",
            f"is {batch}, must be a multiple of augmentation.repeats ({repeats}), so that all "
            f"copies of an image are in one batch of one worker; use {below} or "
            f"{below + repeats}",
        )
    if instance == "none" or weight == 1:
        return
    if repeats == 1:
        yield _violation(
            "augmentation.repeats",
            f"is 1, must be at least 2 for instance_loss '{instance}', whose positives are "
            "copies of one image; or set objective.classification_weight to 1",
        )
    elif batch // repeats == 1:
        yield _violation(
            "schedule.batch_size",
            f"is {batch}, must be at least {2 * repeats} for instance_loss '{instance}', which "
            "needs two different images in a batch",
        )


def _crops(spec: TrainingSpec) -> Iterator[FieldViolation]:
    augmentation = spec.augmentation
    for name, low, high in (
        ("crop_scale", augmentation.crop_scale_min, augmentation.crop_scale_max),
        ("crop_ratio", augmentation.crop_ratio_min, augmentation.crop_ratio_max),
    ):
        if low > high:
            yield _violation(
                f"augmentation.{name}_min",
                f"is {low:g}, must be at most augmentation.{name}_max ({high:g})",
            )


def _schedule(spec: ScheduleSpec) -> Iterator[FieldViolation]:
    rate = spec.learning_rate
    path = "schedule.learning_rate"
    if any(milestone <= 0 for milestone in rate.milestones):
        yield _violation(f"{path}.milestones", "every milestone must be greater than 0")
    elif any(a >= b for a, b in itertools.pairwise(rate.milestones)):
        yield _violation(f"{path}.milestones", "must be in ascending order")
    if rate.kind == "step":
        return
    ends_at = rate.end_epoch or float(spec.epochs)
    # Past its end the rate is 0: the rest of the run would silently not train.
    ends_at_zero = rate.decay > 0 if rate.kind == "thor" else rate.end == 0
    if ends_at < spec.epochs and ends_at_zero:
        yield _violation(
            f"{path}.end_epoch",
            f"is {ends_at:g}, must be at least schedule.epochs ({spec.epochs}), because the "
            "learning rate would be 0 for the rest; 0 means the number of epochs",
        )
    if rate.kind != "thor" and rate.warmup_epochs >= ends_at:
        yield _violation(
            f"{path}.warmup_epochs",
            f"is {rate.warmup_epochs:g}, must be less than the {ends_at:g} epochs of the schedule",
        )


def _thor(spec: ThorSpec) -> Iterator[FieldViolation]:
    path = "optimizer.thor"
    if spec.w2 > spec.w1:
        yield _violation(f"{path}.w2", f"is {spec.w2:g}, must be at most {path}.w1 ({spec.w1:g})")
    if spec.damping_min > spec.damping_init:
        yield _violation(
            f"{path}.damping_min",
            f"is {spec.damping_min:g}, must be at most {path}.damping_init ({spec.damping_init:g})",
        )
    if 0 < spec.frequency_max < spec.frequency:
        yield _violation(
            f"{path}.frequency_max",
            f"is {spec.frequency_max}, must be 0 (one epoch) or at least {path}.frequency "
            f"({spec.frequency})",
        )


def _precision(spec: TrainingSpec) -> Iterator[FieldViolation]:
    if spec.precision == "fp16" and spec.devices.target == "cpu":
        yield _violation(
            "precision", "is 'fp16', which needs devices.target 'gpu' or 'ascend'; use 'fp32'"
        )


def _loss_scale(spec: OptimizerSpec) -> Iterator[FieldViolation]:
    low, high = spec.loss_scale_min, spec.loss_scale_max
    if low > high:
        yield _violation(
            "optimizer.loss_scale_min",
            f"is {low:g}, must be at most optimizer.loss_scale_max ({high:g})",
        )
    elif spec.loss_scaling == "dynamic" and spec.loss_scale and not low <= spec.loss_scale <= high:
        yield _violation(
            "optimizer.loss_scale",
            f"is {spec.loss_scale:g}, must be between optimizer.loss_scale_min ({low:g}) and "
            f"optimizer.loss_scale_max ({high:g}), or 0",
        )


def _devices(spec: DeviceSpec) -> Iterator[FieldViolation]:
    if spec.launcher == "rank-table":
        if spec.target != "ascend":
            yield _violation(
                "devices.launcher",
                f"is 'rank-table', which needs devices.target 'ascend', not '{spec.target}'; "
                "use 'msrun'",
            )
        if not spec.rank_table:
            yield _violation("devices.rank_table", "required with devices.launcher 'rank-table'")
    if spec.rank_table and spec.target != "ascend":
        yield _violation(
            "devices.rank_table",
            f"needs devices.target 'ascend', not '{spec.target}'",
        )


def _weights(spec: WeightsSource, allowed: tuple[str, ...] = _SOURCES) -> Iterator[FieldViolation]:
    given = [name for name in _SOURCES if getattr(spec, name)]
    if len(given) != 1:
        what = f"{' and '.join(given)} are set" if given else "none is set"
        names = f"{', '.join(allowed[:-1])} and {allowed[-1]}"
        yield _violation("weights", f"exactly one of {names} is needed; {what}")
    if not re.fullmatch(r"last|best|[0-9]{1,18}", spec.checkpoint):
        yield _violation(
            "weights.checkpoint",
            f"is '{spec.checkpoint[:60]}', must be 'last', 'best' or a step number such as '1200'",
        )
    elif spec.checkpoint != "last" and given and "job_id" not in given:
        yield _violation("weights.checkpoint", "selects a checkpoint of a job; set weights.job_id")


def _network(trunk: str, gem_p: float, resolution: int) -> Iterator[FieldViolation]:
    """Checks the fields that describe a weights file; 0 and empty: the checkpoint's own values."""
    trunks = get_args(TrunkName)
    if trunk and trunk not in trunks:
        guess = nearest(trunk, trunks)
        hint = f"; did you mean '{guess}'?" if guess else ""
        yield _violation("trunk", f"is '{trunk[:60]}', must be one of {', '.join(trunks)}{hint}")
    if 0 < gem_p < 1:
        yield _violation("gem_p", f"is {gem_p:g}, must be 0 (the checkpoint's) or at least 1")
    if 0 < resolution < _SMALLEST_IMAGE:
        yield _violation("resolution", f"is {resolution}, must be 0 or at least {_SMALLEST_IMAGE}")


def _resolutions(spec: ExportSpec) -> Iterator[FieldViolation]:
    if spec.resolutions and (spec.resolution or spec.gem_p):
        yield _violation(
            "resolutions",
            "replaces resolution and gem_p: omit these two, and list the default one first",
        )
    seen = set()
    for number, head in enumerate(spec.resolutions):
        here = f"resolutions[{number}]"
        for violation in _network("", head.gem_p, head.resolution):
            name = violation.field.removeprefix("spec.")
            yield _violation(f"{here}.{name}", violation.message)
        if head.resolution in seen:
            yield _violation(f"{here}.resolution", f"{head.resolution} is a duplicate")
        seen.add(head.resolution)


def _layouts(tasks: tuple[Task, ...]) -> Iterator[FieldViolation]:
    own_layout = [task for task in tasks if task not in FOLDER_TASKS]
    if own_layout and len(set(tasks)) > 1:
        yield _violation(
            "tasks",
            f"{own_layout[0]!r} has its own folder layout: run it as a separate job, without "
            + ", ".join(sorted(repr(task) for task in set(tasks) - {own_layout[0]})),
        )


def _duplicates(name: str, values: tuple[str, ...]) -> Iterator[FieldViolation]:
    if len(set(values)) != len(values):
        yield _violation(name, "has duplicates")


def _evaluation_schedule(spec: TrainingSpec) -> Iterator[FieldViolation]:
    """Checks ``evaluation`` of a training job with scheduled evaluations."""
    schedule = spec.evaluation
    if not schedule.tasks:
        yield _violation("evaluation.tasks", "is empty: name at least one task")
        return
    retrieval = [task for task in schedule.tasks if task not in _ON_VAL]
    if len(set(schedule.tasks)) != len(schedule.tasks):
        yield from _duplicates("evaluation.tasks", schedule.tasks)
    elif len(retrieval) > 1:
        yield _violation(
            "evaluation.tasks",
            f"{' and '.join(repr(task) for task in retrieval)} need different folders; keep one "
            "of them, and run the others as separate jobs",
        )
    for task in retrieval:
        if task not in FOLDER_TASKS and not schedule.retrieval_path:
            yield _violation(
                "evaluation.retrieval_path", f"required: the folder of the task '{task}'"
            )
    if schedule.retrieval_path and not retrieval:
        yield _violation(
            "evaluation.retrieval_path",
            "is not used by any task: add 'groups' to evaluation.tasks, or the benchmark of these "
            "images",
        )
    on_val = [t for t in schedule.tasks if t in _ON_VAL or not schedule.retrieval_path]
    held_out = spec.dataset.val_path or spec.dataset.val_fraction
    if on_val and not held_out and not (set(on_val) - FOLDER_TASKS):
        yield _violation(
            "dataset.val_path",
            f"required, as evaluation.every_epochs is {schedule.every_epochs}; give a folder, or "
            "dataset.val_fraction to hold out some of the training images, or set "
            "evaluation.every_epochs to 0 to train without evaluation",
        )
    metrics = [name for task in dict.fromkeys(schedule.tasks) for name in TASK_METRICS[task]]
    if schedule.metric not in metrics:
        owner = next(task for task, names in TASK_METRICS.items() if schedule.metric in names)
        yield _violation(
            "evaluation.metric",
            f"is '{schedule.metric}', a metric of the task '{owner}': add that to "
            f"evaluation.tasks, or use one of {', '.join(metrics)}",
        )


def _gem_p_task(spec: EvaluationSpec) -> Iterator[FieldViolation]:
    """Checks an evaluation specification with the task "gem_p"."""
    if len(set(spec.tasks)) > 1:
        yield _violation(
            "tasks",
            "'gem_p' uses training images, the other tasks held-out ones: run it as a separate job",
        )
    if spec.transform != "crop":
        yield _violation("transform", f"is '{spec.transform}', must be 'crop' for the task 'gem_p'")
    if spec.whiten:
        yield _violation(
            "whiten", "a whitening belongs to one gem_p, but the task 'gem_p' varies it"
        )
    candidates = spec.exponent.candidates
    for number, p in enumerate(candidates):
        if p < 1:
            yield _violation(f"exponent.candidates[{number}]", f"is {p:g}, must be at least 1")
    if len(set(candidates)) != len(candidates):
        yield _violation("exponent.candidates", "has duplicates")
    if spec.exponent.method == "search":
        if spec.gem_p:
            yield _violation(
                "gem_p", "is the result of the search: omit it, or add it to the candidates"
            )
        return
    if math.isinf(spec.gem_p):
        yield _violation("gem_p", "an infinite gem_p has no gradient; set a finite one")
    if spec.devices.count != 1:
        yield _violation(
            "devices.count", f"is {spec.devices.count}, must be 1 for the method 'finetune'"
        )

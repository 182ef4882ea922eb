"""Specifications as messages: same fields as the classes, and no loss in either direction."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from multigrain.specs.base import Spec
from multigrain.specs.evaluation import EvaluationSpec
from multigrain.specs.export import ExportSpec
from multigrain.specs.presets import preset_names
from multigrain.specs.resolve import resolve_evaluation, resolve_export, resolve_training
from multigrain.specs.training import TrainingSpec
from multigrain.v1 import evaluation_spec_pb2, export_spec_pb2, training_spec_pb2
from multigrain_server.convert.jobs import (
    evaluation_message,
    export_message,
    overrides,
    training_message,
)

PAIRS = [
    (training_spec_pb2.TrainingSpec, TrainingSpec),
    (evaluation_spec_pb2.EvaluationSpec, EvaluationSpec),
    (export_spec_pb2.ExportSpec, ExportSpec),
]
SCALARS = {
    FieldDescriptor.CPPTYPE_STRING: str,
    FieldDescriptor.CPPTYPE_BOOL: bool,
    FieldDescriptor.CPPTYPE_DOUBLE: float,
    FieldDescriptor.CPPTYPE_UINT32: int,
    FieldDescriptor.CPPTYPE_UINT64: int,
}


def _scalar(annotation: Any) -> type:
    """The plain type of an annotation; a Literal counts as the type of its members."""
    if get_origin(annotation) is Literal:
        (kind,) = {type(member) for member in get_args(annotation)}
        return kind
    assert isinstance(annotation, type)
    return annotation


def _differences(message: Descriptor, spec: type[Spec], path: str) -> Iterator[str]:
    ours = spec.model_fields
    theirs = message.fields_by_name
    yield from (f"{path}.{name}: not in the message" for name in ours if name not in theirs)
    yield from (f"{path}.{name}: not in the class" for name in theirs if name not in ours)
    for name in ours.keys() & theirs.keys():
        field, annotation, here = theirs[name], ours[name].annotation, f"{path}.{name}"
        if field.is_repeated:
            if get_origin(annotation) is not tuple:
                yield f"{here}: a list on the wire, {annotation} in the class"
                continue
            annotation = get_args(annotation)[0]
        elif not field.has_presence:
            yield f"{here}: cannot be told from unset; make it optional"
        if field.message_type:
            if not (isinstance(annotation, type) and issubclass(annotation, Spec)):
                yield f"{here}: a message on the wire, {annotation} in the class"
                continue
            yield from _differences(field.message_type, annotation, here)
        elif _scalar(annotation) is not SCALARS.get(field.cpp_type):
            yield f"{here}: types differ, {annotation} in the class"


@pytest.mark.parametrize(("message", "spec"), PAIRS)
def test_messages_and_classes_have_the_same_fields_of_the_same_types(
    message: Any, spec: type[Spec]
) -> None:
    assert list(_differences(message.DESCRIPTOR, spec, "spec")) == []


def test_the_comparison_sees_a_missing_field_and_another_type() -> None:
    class Other(Spec):
        job_id: int = 0
        checkpoint_path: str = ""
        model: str = ""
        extra: str = ""

    found = list(_differences(evaluation_spec_pb2.WeightsSource.DESCRIPTOR, Other, "w"))
    assert sorted(line.split(":")[0] for line in found) == ["w.checkpoint", "w.extra", "w.job_id"]


def test_unset_fields_are_left_out() -> None:
    assert overrides(training_spec_pb2.TrainingSpec()) == {}


def test_zero_false_and_empty_strings_are_kept() -> None:
    message = training_spec_pb2.TrainingSpec(preset="", seed=0)
    message.model.learn_gem_p = False
    message.augmentation.flip = 0.0
    assert overrides(message) == {
        "preset": "",
        "seed": 0,
        "model": {"learn_gem_p": False},
        "augmentation": {"flip": 0.0},
    }


def test_messages_become_dicts_and_repeated_fields_lists() -> None:
    message = training_spec_pb2.TrainingSpec()
    message.optimizer.thor.frequency = 7
    message.schedule.learning_rate.milestones.extend([1.5, 2])
    assert overrides(message) == {
        "optimizer": {"thor": {"frequency": 7}},
        "schedule": {"learning_rate": {"milestones": [1.5, 2.0]}},
    }


@pytest.mark.parametrize("source", ["job_id", "checkpoint_path", "model"])
def test_only_the_given_source_of_weights_is_kept(source: str) -> None:
    message = evaluation_spec_pb2.EvaluationSpec(
        weights=evaluation_spec_pb2.WeightsSource(**{source: "x"})
    )
    assert overrides(message) == {"weights": {source: "x"}}


def _unset(message: Any, path: str = "") -> Iterator[str]:
    """Fields that are not set, those of a oneof of several left out."""
    for field in message.DESCRIPTOR.fields:
        oneof = field.containing_oneof
        if field.is_repeated or (oneof is not None and len(oneof.fields) > 1):
            continue
        if not message.HasField(field.name):
            yield path + field.name
        elif field.message_type:
            yield from _unset(getattr(message, field.name), f"{path}{field.name}.")


@pytest.mark.parametrize("preset", preset_names())
def test_a_resolved_training_spec_round_trips(preset: str) -> None:
    spec = resolve_training({"preset": preset, "dataset": {"train_path": "/data/train"}})
    message = training_message(spec)
    assert list(_unset(message)) == []
    # Over the wire and resolved again: the same, preset or not.
    received = training_spec_pb2.TrainingSpec.FromString(message.SerializeToString())
    assert resolve_training(overrides(received)) == spec


def test_a_resolved_evaluation_spec_round_trips() -> None:
    spec = resolve_evaluation(
        {
            "weights": {"job_id": "j1", "checkpoint": "best"},
            "dataset_path": "/d",
            "tasks": ["copy_detection", "groups"],
            "transform": "rect",
            "group_queries": "first",
        }
    )
    message = evaluation_message(spec)
    assert list(_unset(message)) == []
    assert message.weights.WhichOneof("source") == "job_id"
    assert resolve_evaluation(overrides(message)) == spec


def test_a_resolved_export_spec_round_trips() -> None:
    spec = resolve_export(
        {"weights": {"checkpoint_path": "/c"}, "model_name": "m", "gem_p": math.inf}
    )
    message = export_message(spec)
    assert list(_unset(message)) == []
    assert list(message.formats) == ["mindir", "onnx"]
    assert message.weights.WhichOneof("source") == "checkpoint_path"
    assert resolve_export(overrides(message)) == spec


def test_an_empty_list_keeps_the_value_of_the_preset() -> None:
    # Stated, because the wire cannot say "an empty list".
    message = training_spec_pb2.TrainingSpec(preset="resnet50-imagenet-thor-gpu")
    message.schedule.learning_rate.CopyFrom(training_spec_pb2.LearningRateSpec(milestones=[]))
    message.dataset.train_path = "/d"
    assert resolve_training(overrides(message)).schedule.learning_rate.milestones == (39, 40)


def test_overrides_are_plain_values() -> None:
    message = training_spec_pb2.TrainingSpec()
    message.schedule.learning_rate.milestones.append(1)
    milestones = overrides(message)["schedule"]["learning_rate"]["milestones"]
    assert type(milestones) is list

"""Specifications between the wire and the library.

The messages of ``multigrain.v1`` and the classes of ``multigrain.spec`` have the same fields
under the same names (a test compares them), so one walk over the descriptor serves all.
"""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.message import Message

from multigrain.spec.base import Spec
from multigrain.spec.evaluation import EvaluationSpec
from multigrain.spec.export import ExportSpec
from multigrain.spec.training import TrainingSpec
from multigrain.v1 import evaluation_spec_pb2, export_spec_pb2, training_spec_pb2

_M = TypeVar("_M", bound=Message)


def overrides(message: Message) -> dict[str, Any]:
    """What a request sets, as the nested mapping that ``multigrain.spec.resolve`` takes.

    A field that was not set does not appear; one that was set to 0, false or "" does. An
    empty list cannot be told from no list and does not appear.
    """
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            if value:
                values[field.name] = [
                    overrides(item) if field.message_type else item for item in value
                ]
        elif message.HasField(field.name):
            values[field.name] = overrides(value) if field.message_type else value
    return values


def training_message(spec: TrainingSpec) -> training_spec_pb2.TrainingSpec:
    """The resolved specification with every field set."""
    return _filled(training_spec_pb2.TrainingSpec(), spec)


def evaluation_message(spec: EvaluationSpec) -> evaluation_spec_pb2.EvaluationSpec:
    """The resolved specification with every field set; of the weights, the one source."""
    return _filled(evaluation_spec_pb2.EvaluationSpec(), spec)


def export_message(spec: ExportSpec) -> export_spec_pb2.ExportSpec:
    """The resolved specification with every field set; of the weights, the one source."""
    return _filled(export_spec_pb2.ExportSpec(), spec)


def _filled(message: _M, spec: Spec) -> _M:
    for field in message.DESCRIPTOR.fields:
        value = getattr(spec, field.name)
        if field.is_repeated and field.message_type:
            for item in value:
                _filled(getattr(message, field.name).add(), item)
        elif field.is_repeated:
            getattr(message, field.name).extend(value)
        elif field.message_type:
            # Marks the group as set, even if all in it is a default.
            getattr(message, field.name).SetInParent()
            _filled(getattr(message, field.name), value)
        else:
            # To protobuf an `optional` field is alone in a oneof of its own.
            oneof = field.containing_oneof
            if value or oneof is None or len(oneof.fields) == 1:
                setattr(message, field.name, value)
    return message

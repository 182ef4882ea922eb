"""Derives the client's ``LossPoint`` from the message LossEvent and its comments."""

from __future__ import annotations

import textwrap
from pathlib import Path

from google.protobuf.descriptor_pb2 import FieldDescriptorProto

from tools.docs.protos import comments, files

PATH = Path(__file__).resolve().parents[1] / "client" / "multigrain_client" / "loss_point.py"

_TYPES = {
    FieldDescriptorProto.TYPE_BOOL: "bool",
    FieldDescriptorProto.TYPE_DOUBLE: "float",
    FieldDescriptorProto.TYPE_FLOAT: "float",
    FieldDescriptorProto.TYPE_STRING: "str",
    FieldDescriptorProto.TYPE_UINT32: "int",
    FieldDescriptorProto.TYPE_UINT64: "int",
}

_HEAD = '''\
# Generated from LossEvent in protos/multigrain/v1/job.proto by `make sync-client`: edit that.
"""A loss event as a dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class LossPoint:
    """One training step.

    ``(attempt, step)`` identifies it: a job that restarts from a checkpoint repeats the steps after
    it in the next attempt. ``latest_curve`` returns a curve without duplicate steps.
    """

    attempt: int
    """Attempt of the job, from 1."""

    seq: int
    """Sequence number of the event."""

    time: datetime
    """Time of the event, UTC."""
'''


def generate() -> dict[Path, str]:
    """The generated file by path."""
    messages = files()["multigrain/v1/job.proto"].message_type
    (message,) = (message for message in messages if message.name == "LossEvent")
    text = _HEAD
    for field in message.field:
        text += f"\n    {field.name}: {_TYPES[field.type]}\n"
        text += _docstring(" ".join(comments()[f"multigrain.v1.LossEvent.{field.name}"].split()))
    return {PATH: text}


def _docstring(comment: str) -> str:
    one_line = f'    """{comment}"""\n'
    if len(one_line) <= 101:
        return one_line
    text = textwrap.fill(f'"""{comment}', 100, initial_indent="    ", subsequent_indent="    ")
    return f'{text}\n    """\n'

"""Messages as plain Python data for JSON, in the spelling of ``events.jsonl``.

Unlike protobuf's own JSON: fields keep their names, 64-bit numbers stay numbers, enums lose
their prefix, and what is empty is shown (but for a message that is not set).
"""

from __future__ import annotations

import base64
import math
from datetime import UTC
from typing import Any, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from multigrain_client.messages import enum_name


def to_plain(message: Message) -> dict[str, Any]:
    """The message as nested dicts, lists and scalars that JSON can hold."""
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        field = cast("FieldDescriptor", field)
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            inner = field.message_type.fields_by_name["value"]
            result[field.name] = {key: _single(inner, value[key]) for key in sorted(value, key=str)}
        elif field.is_repeated:
            result[field.name] = [_single(field, item) for item in value]
        else:
            result[field.name] = _single(field, value)
    return result


def _single(field: Any, value: Any) -> Any:
    if isinstance(value, Timestamp):
        moment = value.ToDatetime(tzinfo=UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, Message):
        return to_plain(value)
    if field.enum_type is not None:
        return enum_name(field.enum_type, value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        # JSON has no such numbers.
        return str(value)
    if field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT:
        # Seven digits are all that a 32-bit number has.
        return float(f"{value:.7g}")
    return value

"""Bytes and messages that are nearly right, drawn from a seeded generator."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

_NUMBERS = (0, 1, 2, 3, 7, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
_REALS = (0.0, -0.0, 1.0, -1.0, 1e-300, 1e300, 0.5, float("nan"), float("inf"), float("-inf"))
_TEXTS = (
    *("", " ", "a", "A" * 300, "x" * 70_000, "\0", "a\nb", "\x1b[31m", "é\u2028\U0001f600"),
    *("../../etc/passwd", "/etc/passwd", "/", ".", "..", "~", "file:///etc/passwd", "C:\\x"),
    *("%s%n", "{0}", "${x}", "'; DROP TABLE jobs; --", "-1", "1e999", "nan", "true", "null"),
)
_DEPTH = 4
_TYPE = FieldDescriptor


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The same with one to four small harms."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(out) + 1)
        length = min(chance.choice((1, 1, 2, 4, 16, 200)), len(out) - at)
        match chance.randrange(8):
            case 0 if out:
                out[at - 1] ^= 1 << chance.randrange(8)
            case 1:
                out[at : at + length] = chance.randbytes(length)
            case 2:
                del out[at : at + length]
            case 3:
                out[at:at] = chance.randbytes(chance.choice((1, 2, 4, 64)))
            case 4:
                out[at:at] = out[at : at + length]
            case 5:
                del out[at:]
            case 6:
                number = chance.choice(_NUMBERS)
                width = chance.choice((1, 2, 4, 8))
                order = chance.choice(("little", "big"))
                number %= 1 << 8 * width
                out[at : at + width] = number.to_bytes(width, order)  # type: ignore[arg-type]
            case 7:
                out[at:at] = chance.choice(_TEXTS).encode()[:400]
    return bytes(out)


class Messages:
    """Makes messages of any type, by its descriptor.

    Args:
        chance: the source of all choices.
        words: texts that mean something to the server: names, ids, paths.
        blobs: contents of fields of bytes.
        templates: messages to begin with in half of the cases, by the full name of their type.
    """

    def __init__(
        self,
        chance: random.Random,
        words: Sequence[str],
        blobs: Sequence[bytes],
        templates: Mapping[str, Message] | None = None,
    ) -> None:
        self._chance = chance
        self._words = words
        self._blobs = blobs
        self._templates = templates or {}

    def fill(self, message: Message, depth: int = 0, share: float = 0.5) -> Message:
        """Sets about that share of the fields."""
        kind: Descriptor = message.DESCRIPTOR
        for field in kind.fields:
            if self._chance.random() > share or depth > _DEPTH:
                continue
            if field.is_repeated:
                self._fill_many(message, field, depth)
            elif field.message_type is not None:
                part = getattr(message, field.name)
                part.SetInParent()
                self.fill(part, depth + 1)
            else:
                setattr(message, field.name, self._value(field))
        return message

    def encoded(self, message: Message) -> bytes:
        """Of a message of that type; now and then damaged."""
        template = self._templates.get(message.DESCRIPTOR.full_name)
        if template is not None and self._chance.random() < 0.5:
            message.CopyFrom(template)
            self.fill(message, share=0.1)
        else:
            self.fill(message)
        data = message.SerializeToString()
        return mutated(data, self._chance) if self._chance.random() < 0.25 else data

    def _fill_many(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        target = getattr(message, field.name)
        entry = field.message_type
        for _ in range(self._chance.choice((0, 1, 1, 2, 5))):
            if entry is None:
                target.append(self._value(field))
            elif entry.GetOptions().map_entry:
                key = self._value(entry.fields_by_name["key"])
                value = entry.fields_by_name["value"]
                if value.message_type is None:
                    target[key] = self._value(value)
                else:
                    self.fill(target[key], depth + 1)
            else:
                self.fill(target.add(), depth + 1)

    def _value(self, field: FieldDescriptor) -> Any:
        chance = self._chance
        match field.type:
            case _TYPE.TYPE_STRING:
                return chance.choice(self._words if chance.random() < 0.7 else _TEXTS)
            case _TYPE.TYPE_BYTES:
                blob = chance.choice(self._blobs)
                return mutated(blob, chance) if chance.random() < 0.4 else blob
            case _TYPE.TYPE_BOOL:
                return chance.random() < 0.5
            case _TYPE.TYPE_FLOAT | _TYPE.TYPE_DOUBLE:
                return chance.choice((*_REALS, chance.uniform(-10, 10)))
            case _TYPE.TYPE_ENUM:
                known = [value.number for value in field.enum_type.values]
                return chance.choice((*known, 77))
        number = chance.choice((*_NUMBERS, chance.randrange(100)))
        if field.cpp_type in (_TYPE.CPPTYPE_INT32, _TYPE.CPPTYPE_INT64):
            number = chance.choice((number, -number))
        bits = 32 if field.cpp_type in (_TYPE.CPPTYPE_INT32, _TYPE.CPPTYPE_UINT32) else 64
        signed = field.cpp_type in (_TYPE.CPPTYPE_INT32, _TYPE.CPPTYPE_INT64)
        top = 1 << (bits - 1 if signed else bits)
        return max(-top if signed else 0, min(number, top - 1))

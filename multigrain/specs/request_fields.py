"""Checks of the fields that all Start requests share, with the limits of ``training.proto``."""

from __future__ import annotations

from collections.abc import Mapping

from multigrain.errors import FieldViolation
from multigrain.specs.violations import refusal
from multigrain.text import is_printable, printable

MAX_REQUEST_ID = 128
MAX_NAME = 128
MAX_LABELS = 64
MAX_LABEL_KEY = 63
MAX_LABEL_VALUE = 255


def check_request(request_id: str, name: str, labels: Mapping[str, str]) -> None:
    """Checks request id, name and labels of a Start request. Empty ones are not set.

    An id or a name has at most 128 characters; a request has at most 64 labels, with keys of 1 to
    63 characters and values of at most 255. None has control characters, direction marks or
    invisible characters: they would break log lines and terminals.

    Raises:
        MultigrainError: INVALID_FIELD with every violation.
    """
    found = [*_text("request_id", request_id, MAX_REQUEST_ID), *_name(name), *_labels(labels)]
    if found:
        raise refusal(found)


def check_name(name: str) -> None:
    """Checks a job's name; see :func:`check_request`.

    Raises:
        MultigrainError: INVALID_FIELD.
    """
    if found := _name(name):
        raise refusal(found)


def check_filter(name_contains: str, labels: Mapping[str, str]) -> None:
    """Checks a filter of jobs: it must be one that valid names and labels can match.

    Raises:
        MultigrainError: INVALID_FIELD with every violation.
    """
    found = [*_text("name_contains", name_contains, MAX_NAME), *_labels(labels)]
    if found:
        raise refusal(found)


def _name(name: str) -> list[FieldViolation]:
    return _text("name", name, MAX_NAME)


def _labels(labels: Mapping[str, str]) -> list[FieldViolation]:
    if len(labels) > MAX_LABELS:
        # Labels are not checked one by one: a million labels would make a million violations.
        return [FieldViolation("labels", f"has {len(labels)} labels, at most {MAX_LABELS}")]
    found: list[FieldViolation] = []
    for key, value in sorted(labels.items()):
        if not key:
            found.append(FieldViolation("labels", "a label has an empty key"))
        # The key may be invalid: it is quoted and truncated for the message.
        found += _text(f"labels[{key[:MAX_LABEL_KEY]!r}]", value, MAX_LABEL_VALUE, "value ")
        found += _text(f"labels[{key[:MAX_LABEL_KEY]!r}]", key, MAX_LABEL_KEY, "key ")
    return found


def _text(field: str, text: str, limit: int, what: str = "") -> list[FieldViolation]:
    found = []
    if len(text) > limit:
        found.append(FieldViolation(field, f"{what}has {len(text)} characters, at most {limit}"))
    if not is_printable(text):
        first = next(character for character in text if not is_printable(character))
        found.append(
            FieldViolation(field, f"{what}has a control or invisible character, {printable(first)}")
        )
    return found

"""Checks of the fields that every Start request has, with the limits of ``training.proto``."""

from __future__ import annotations

from collections.abc import Mapping

from multigrain.errors import FieldViolation
from multigrain.specs.violations import refusal

MAX_REQUEST_ID = 128
MAX_NAME = 128
MAX_LABELS = 64
MAX_LABEL_KEY = 63
MAX_LABEL_VALUE = 255


def check_request(request_id: str, name: str, labels: Mapping[str, str]) -> None:
    """Refuses a request whose id, name or labels break a limit.

    Raises:
        MultigrainError: INVALID_FIELD with every violation.
    """
    found = [*_request_id(request_id), *_name(name), *_labels(labels)]
    if found:
        raise refusal(found)


def check_request_id(request_id: str) -> None:
    """Refuses an id of more than 128 characters or with control characters. Empty: no id."""
    if found := _request_id(request_id):
        raise refusal(found)


def check_name(name: str) -> None:
    """Refuses a name of more than 128 characters or with control characters. Empty: no name."""
    if found := _name(name):
        raise refusal(found)


def check_labels(labels: Mapping[str, str]) -> None:
    """Refuses more than 64 labels, keys of other than 1 to 63 characters, values of more than
    255, and control characters in either."""
    if found := _labels(labels):
        raise refusal(found)


def check_filter(name_contains: str, labels: Mapping[str, str]) -> None:
    """Refuses a filter that no name and no labels within the limits could match."""
    found = [*_text("name_contains", name_contains, MAX_NAME), *_labels(labels)]
    if found:
        raise refusal(found)


def _request_id(request_id: str) -> list[FieldViolation]:
    return _text("request_id", request_id, MAX_REQUEST_ID)


def _name(name: str) -> list[FieldViolation]:
    return _text("name", name, MAX_NAME)


def _labels(labels: Mapping[str, str]) -> list[FieldViolation]:
    if len(labels) > MAX_LABELS:
        # The rest is not looked at: a million labels must not make a million violations.
        return [FieldViolation("labels", f"has {len(labels)} labels, at most {MAX_LABELS}")]
    found: list[FieldViolation] = []
    for key, value in sorted(labels.items()):
        if not key:
            found.append(FieldViolation("labels", "a label has an empty key"))
        # Whatever is wrong with the key, it is quoted and cut before it is shown.
        found += _text(f"labels[{key[:MAX_LABEL_KEY]!r}]", value, MAX_LABEL_VALUE, "value ")
        found += _text(f"labels[{key[:MAX_LABEL_KEY]!r}]", key, MAX_LABEL_KEY, "key ")
    return found


def _text(field: str, text: str, limit: int, what: str = "") -> list[FieldViolation]:
    found = []
    if len(text) > limit:
        found.append(FieldViolation(field, f"{what}has {len(text)} characters, at most {limit}"))
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        # They would break log lines and terminals.
        found.append(FieldViolation(field, f"{what}holds a control character"))
    return found

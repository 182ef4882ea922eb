"""The limits of a request's id, name and labels."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.specs.request_fields import check_name, check_request

# C1 controls, direction overrides and isolates, a line separator, invisible characters and tags.
UNPRINTABLE = ["\x9b", "\u202e", "\u2066", "\u2028", "\u200b", "\u00ad", "\ufeff", "\U000e0041"]


def _fields(check: Callable[[], None]) -> list[str]:
    with pytest.raises(MultigrainError) as caught:
        check()
    assert caught.value.kind is ErrorKind.INVALID_FIELD
    return [violation.field for violation in caught.value.violations]


@pytest.mark.parametrize(
    "text", ["", "a", "x" * 128, "é" * 128, "an id with spaces", "a\u0301\u200d日本 \U0001f980"]
)
def test_ids_and_names_of_up_to_128_characters_are_accepted(text: str) -> None:
    check_request(text, "", {})
    check_name(text)


@pytest.mark.parametrize("text", ["x" * 129, "a\nb", "\0", "\x7f", "\x1b[2J", *UNPRINTABLE])
def test_longer_ids_and_control_characters_are_refused(text: str) -> None:
    assert _fields(lambda: check_request(text, "", {})) == ["request_id"]
    assert _fields(lambda: check_name(text)) == ["name"]


def test_labels_at_their_limits_are_accepted() -> None:
    check_request("", "", {})
    check_request("", "", {f"{i:0>63}": "v" * 255 for i in range(64)})
    check_request("", "", {"team": ""})


def test_too_many_labels_are_one_violation() -> None:
    assert _fields(lambda: check_request("", "", {str(i): "\0" for i in range(65)})) == ["labels"]


@pytest.mark.parametrize(
    ("labels", "field"),
    [
        ({"": "v"}, "labels"),
        ({"k" * 64: "v"}, f"labels['{'k' * 63}']"),
        ({"k": "v" * 256}, "labels['k']"),
        ({"k": "v\n"}, "labels['k']"),
        ({"k\n": "v"}, "labels['k\\n']"),
        *(({"k": f"v{one}"}, "labels['k']") for one in UNPRINTABLE),
        *(({f"k{one}": "v"}, f"labels[{f'k{one}'!r}]") for one in UNPRINTABLE),
    ],
)
def test_a_label_beyond_a_limit_is_reported(labels: dict[str, str], field: str) -> None:
    assert _fields(lambda: check_request("", "", labels)) == [field]


def test_all_violations_of_a_request_are_reported() -> None:
    fields = _fields(lambda: check_request("x" * 129, "a\n", {"k": "v" * 256, "": ""}))
    assert fields == ["request_id", "name", "labels", "labels['k']"]
    check_request("id", "name", {"k": "v"})

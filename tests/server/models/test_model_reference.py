"""Names of models as requests write them."""

from __future__ import annotations

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.models.registry import ModelReference


@pytest.mark.parametrize(
    ("text", "name", "version"),
    [
        ("digits", "digits", None),
        ("digits@1", "digits", 1),
        ("a.b-c_d@9223372036854775807", "a.b-c_d", 2**63 - 1),
    ],
)
def test_names_are_parsed(text: str, name: str, version: int | None) -> None:
    assert ModelReference.parse(text) == ModelReference(name, version)


@pytest.mark.parametrize(
    "text",
    [
        *("", "@1", ".hidden", "a/b", "a" * 65, "digits\n", "digits\n@1"),
        *("digits@", "digits@0", "digits@-1", "digits@1\n", "digits@\u00b2", "digits@1@2"),
        *("digits@9223372036854775808", "digits@" + "9" * 5000),
        # Far beyond 64 bits, however it begins.
        "digits@00000000000000000001" + "9" * 5000,
    ],
)
def test_other_texts_are_refused_by_field(text: str) -> None:
    with pytest.raises(MultigrainError) as caught:
        ModelReference.parse(text, "alias")
    assert caught.value.kind is ErrorKind.INVALID_FIELD
    assert caught.value.violations[0].field == "alias"

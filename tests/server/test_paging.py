"""Page tokens and page sizes."""

from __future__ import annotations

import base64
import json

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.paging import PageToken, page_size


@pytest.mark.parametrize("body", [["\ud800", "job", ""], [1, 2, ""], [[], [], ""], {}, "abc"])
def test_a_damaged_page_token_is_refused(body: object) -> None:
    digest = PageToken(("", "")).encode("q")
    known = json.loads(base64.urlsafe_b64decode(digest + "=" * (-len(digest) % 4)))[2]
    if isinstance(body, list):
        body[2] = known
    token = base64.urlsafe_b64encode(json.dumps(body).encode()).decode()
    with pytest.raises(MultigrainError, match="page_token") as caught:
        PageToken.decode(token, "q", (str, str))
    assert caught.value.kind is ErrorKind.INVALID_FIELD


def test_a_page_token_is_valid_for_its_own_query_only() -> None:
    token = PageToken(("2026", "j")).encode("a")
    assert PageToken.decode(token, "a", (str, str)) == PageToken(("2026", "j"))
    with pytest.raises(MultigrainError, match="other fields"):
        PageToken.decode(token, "b", (str, str))
    assert (page_size(0), page_size(1000)) == (50, 1000)
    with pytest.raises(MultigrainError, match="page_size"):
        page_size(1001)


@pytest.mark.parametrize("types", [(str,), (str, str, str), (str, int)])
def test_a_position_of_another_listing_is_refused(types: tuple[type, ...]) -> None:
    token = PageToken(("2026", "j")).encode("q")
    with pytest.raises(MultigrainError, match="not a token of this server"):
        PageToken.decode(token, "q", types)

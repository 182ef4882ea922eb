"""The two clients are one client: the same calls, arguments and defaults."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from multigrain_client import AsyncClient, Client, methods
from tests.contract import calls

RPCS = calls()


def _convenient(client: type) -> dict[str, Any]:
    return {
        name: member
        for name, member in inspect.getmembers(client, inspect.isfunction)
        if not name.startswith("_")
    }


def _signature(method: Any) -> str:
    """Without what differs between a blocking and an asynchronous method by its nature."""
    text = str(inspect.signature(method))
    text = re.sub(r"Iterable\[(\w+)\] \| AsyncIterable\[\1\]", r"Iterable[\1]", text)
    return re.sub(r"Async(Generator|Iterator)", r"\1", text)


def test_both_have_the_same_methods() -> None:
    assert _convenient(Client).keys() == _convenient(AsyncClient).keys()
    assert {"embed", "stream_events", "wait", "load_model"} <= _convenient(Client).keys()


@pytest.mark.parametrize("name", ["__init__", *_convenient(Client)])
def test_a_method_has_the_same_arguments_and_answer_in_both(name: str) -> None:
    assert _signature(getattr(AsyncClient, name)) == _signature(getattr(Client, name))


@pytest.mark.parametrize("name", _convenient(Client))
def test_a_method_is_described_once_and_the_other_client_points_there(name: str) -> None:
    assert len(getattr(Client, name).__doc__) > 10
    other = getattr(AsyncClient, name).__doc__
    assert other.startswith(f"As ``Client.{name}``") or other == getattr(Client, name).__doc__


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_every_call_of_the_contract_is_there_under_its_name(kind: Any) -> None:
    client = kind("127.0.0.1:1")
    for path, rpc in RPCS.items():
        found: methods.Method[Any, Any] = getattr(client, rpc.name).method
        assert found.path == path
        assert found.request.DESCRIPTOR is rpc.input_type
        assert found.response.DESCRIPTOR is rpc.output_type
        shape = {
            (False, False): "Unary",
            (False, True): "Stream",
            (True, False): "Upload",
            (True, True): "Exchange",
        }[rpc.client_streaming, rpc.server_streaming]
        assert type(getattr(client, rpc.name)).__name__ == shape

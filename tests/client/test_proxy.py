"""Proxies in the environment: which connections take them, and errors that name them."""

from __future__ import annotations

import os
import socket
from typing import Any

import grpc
import pytest

from multigrain_client import (
    Client,
    DeadlineExceeded,
    MultigrainClientError,
    RetryPolicy,
    Unavailable,
)
from multigrain_client.channel import channel_config
from multigrain_client.methods import HealthStatus
from multigrain_client.proxy import EXCEPTIONS, VARIABLES, find_proxy
from multigrain_client.targets import parse_target
from tests.client.fake_server import FakeServer
from tests.client.http_proxy import HttpProxy

OTHERS = ("GRPC_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "NO_PROXY")
DEAD = "http://127.0.0.1:1"
HOST = "far.invalid"
ONCE = RetryPolicy(attempts=1)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, *EXCEPTIONS, *OTHERS):
        monkeypatch.delenv(name, raising=False)


def port_of(server: FakeServer) -> str:
    return server.address.rpartition(":")[2]


@pytest.mark.parametrize("variable", [*VARIABLES, *OTHERS[:-1]])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.1,127.0.0.1", "dns", "ipv4"])
def test_loopback_takes_no_proxy(
    make_client: Any,
    server: FakeServer,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    host: str,
) -> None:
    monkeypatch.setenv(variable, DEAD)
    prefix = {"dns": "dns:///127.0.0.1", "ipv4": "ipv4:127.0.0.1"}.get(host, host)
    target = ",".join(f"{part}:{port_of(server)}" for part in prefix.split(","))
    assert make_client(target).health() is HealthStatus.SERVING


def test_a_unix_socket_takes_no_proxy(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with HttpProxy() as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
        for target in (f"unix:{tmp_path}/s", "unix-abstract:nobody-listens"):
            with (
                Client(target, timeout=5.0, retry=ONCE) as client,
                pytest.raises(Unavailable) as caught,
            ):
                client.health()
            assert "proxy" not in str(caught.value)
        assert proxy.wanted == []


def test_the_command_line_takes_no_proxy_to_loopback(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, DEAD)
    code, _, error = run("models")
    assert (code, error) == (0, "")


def test_other_hosts_are_reached_through_the_proxy(
    make_client: Any, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HttpProxy(server.address) as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
        assert make_client(f"{HOST}:5").health() is HealthStatus.SERVING
        assert proxy.wanted == [f"{HOST}:5"]


# What gRPC does with each is seen at the proxy.
ENVIRONMENTS: dict[str, dict[str, str]] = {
    **{variable: {variable: "{proxy}"} for variable in (*VARIABLES, *OTHERS[:-1])},
    "the first that is set": {"grpc_proxy": "{proxy}", "http_proxy": DEAD},
    "the first, though empty": {"grpc_proxy": "", "https_proxy": "{proxy}"},
    "https before http": {"https_proxy": "{proxy}", "http_proxy": DEAD},
    "a user": {"http_proxy": "http://user:secret@{address}"},
    "a path": {"http_proxy": "{proxy}/"},
    "https proxy": {"http_proxy": "https://{address}"},
    "upper case": {"http_proxy": "HTTP://{address}"},
    "no scheme": {"http_proxy": "{address}"},
    "socks": {"http_proxy": "socks5://{address}"},
    "spaces": {"http_proxy": " {proxy}"},
    "excepted": {"http_proxy": "{proxy}", "no_proxy": HOST},
    "excepted by domain": {"http_proxy": "{proxy}", "no_proxy": "a, .invalid"},
    "half a name excepts nothing": {"http_proxy": "{proxy}", "no_proxy": "r.invalid"},
    "excepted without a dot": {"http_proxy": "{proxy}", "no_proxy": "invalid"},
    "excepted in capitals": {"http_proxy": "{proxy}", "no_proxy": "FAR.invalid"},
    "excepted by no_grpc_proxy": {"http_proxy": "{proxy}", "no_grpc_proxy": HOST},
    "no_grpc_proxy wins": {"http_proxy": "{proxy}", "no_grpc_proxy": "a", "no_proxy": HOST},
    "an empty no_grpc_proxy wins": {"http_proxy": "{proxy}", "no_grpc_proxy": "", "no_proxy": HOST},
    "a star excepts nothing": {"http_proxy": "{proxy}", "no_proxy": "*"},
    "a port excepts nothing": {"http_proxy": "{proxy}", "no_proxy": f"{HOST}:5"},
    "an empty entry": {"http_proxy": "{proxy}", "no_proxy": "a,,b"},
    "a blank entry": {"http_proxy": "{proxy}", "no_proxy": "a, ,b"},
    "uppercase exceptions": {"http_proxy": "{proxy}", "NO_PROXY": HOST},
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_proxy_of_an_error_is_the_one_that_grpc_takes(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with HttpProxy() as proxy:
        for variable, text in ENVIRONMENTS[name].items():
            value = text.format(proxy=f"http://{proxy.address}", address=proxy.address)
            monkeypatch.setenv(variable, value)
        found = find_proxy(parse_target(f"{HOST}:5"), os.environ, {})
        with (
            Client(f"{HOST}:5", timeout=5.0, retry=ONCE) as far,
            pytest.raises(MultigrainClientError) as caught,
        ):
            far.health()
        taken = bool(proxy.wanted)
    message = str(caught.value)
    assert taken == (found is not None and not found.unused)
    assert (f"{HOST}:5 through the proxy http://{proxy.address} (environment" in message) == taken
    assert "secret" not in message
    if taken:
        assert f"add {HOST} to no_" in message


def test_networks_are_excepted_by_ip_address() -> None:
    environment = {"http_proxy": DEAD, "no_proxy": "10.0.0.0/8,fd00::/8,192.168.0.7"}
    targets = {
        "10.1.2.3:5": False,
        "[fd00::1]:5": False,
        "192.168.0.7:5": False,
        "[fd00::7]:5": False,
        "11.0.0.1:5": True,
        "[fe00::1]:5": True,
    }
    for target, taken in targets.items():
        assert (find_proxy(parse_target(target), environment, {}) is not None) == taken, target


def test_an_unreachable_proxy_is_named_with_its_variable(
    make_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://user:secret@127.0.0.1:1")
    with pytest.raises(Unavailable) as caught:
        make_client(f"{HOST}:5", timeout=5.0).health()
    message = str(caught.value)
    assert message.startswith(
        f"cannot reach the server at {HOST}:5 through the proxy http://127.0.0.1:1 "
        "(environment variable https_proxy): "
    )
    assert f"To reach {HOST} without it, add {HOST} to no_proxy." in message
    assert "secret" not in message


def test_a_silent_proxy_is_named(make_client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        with pytest.raises((DeadlineExceeded, Unavailable)) as caught:
            make_client(f"{HOST}:5", timeout=0.5).health()
    assert f"through the proxy http://127.0.0.1:{port}" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "target", "why"),
    [
        ("socks5://127.0.0.1:1", f"{HOST}:5", "gRPC takes http://HOST:PORT only"),
        ("https://u:secret@127.0.0.1:1", f"{HOST}:5", "gRPC takes http://HOST:PORT only"),
        ("http://[secret", f"{HOST}:5", "gRPC takes http://HOST:PORT only"),
        (DEAD, "192.0.2.1:5,192.0.2.2:5", "several addresses are reached directly"),
    ],
)
def test_an_error_says_why_a_proxy_is_not_used(
    monkeypatch: pytest.MonkeyPatch, url: str, target: str, why: str
) -> None:
    monkeypatch.setenv("http_proxy", url)
    proxy = channel_config(target).proxy
    assert proxy is not None
    assert proxy.route == ""
    assert proxy.advice == f"The proxy of the environment variable http_proxy is not used: {why}."


def test_channel_options_decide_over_the_environment(
    make_client: Any, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", DEAD)
    assert channel_config(f"{HOST}:5", options={"grpc.enable_http_proxy": 0}).proxy is None
    with HttpProxy(server.address) as proxy:
        options = {"grpc.http_proxy": f"http://{proxy.address}"}
        assert make_client("127.0.0.1:5", options=options).health() is HealthStatus.SERVING
        assert proxy.wanted == ["127.0.0.1:5"]


def test_errors_of_the_server_do_not_mention_the_proxy() -> None:
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details="x"
    )
    from multigrain_client.errors import from_rpc

    assert "proxy" not in str(from_rpc(error, "Embed", "a:1"))

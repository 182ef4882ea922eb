"""Targets of a client: checked before anything is sent, and converted for gRPC."""

from __future__ import annotations

import socket
from typing import Any

import grpc
import pytest

from multigrain_client import AsyncClient, Client, InvalidRequest
from multigrain_client.targets import Target, parse_target


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def lookup(*_: Any, **__: Any) -> Any:
        raise AssertionError("a host was looked up")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)


ACCEPTED = {
    "example.org:50051": Target("example.org:50051", hosts=("example.org",)),
    " example.org:50051\n": Target("example.org:50051", hosts=("example.org",)),
    "my_server:1": Target("my_server:1", hosts=("my_server",)),
    "127.0.0.1:00080": Target("127.0.0.1:80"),
    "localhost:1": Target("localhost:1"),
    "[::1]:1": Target("[::1]:1"),
    "0.0.0.0:1": Target("0.0.0.0:1"),
    "[2001:db8::1]:1": Target("[2001:db8::1]:1", hosts=("2001:db8::1",)),
    "[fe80::1%eb0]:1": Target("[fe80::1%25eb0]:1", hosts=("fe80::1%eb0",)),
    "[fe80::1%25eb0]:1": Target("[fe80::1%25eb0]:1", hosts=("fe80::1%eb0",)),
    "[fe80::1%251]:1": Target("[fe80::1%25251]:1", hosts=("fe80::1%251",)),
    "[fe80::1%25]:1": Target("[fe80::1%2525]:1", hosts=("fe80::1%25",)),
    "[fe80::1%25a]:1,[fe80::2%b]:2": Target(
        "ipv6:[fe80::1%25a]:1,[fe80::2%25b]:2",
        "[fe80::1%a]:1",
        ("fe80::1%a", "fe80::2%b"),
        several=True,
    ),
    "ipv6:[fe80::1%25eb0]:1": Target("ipv6:[fe80::1%25eb0]:1", "[fe80::1%eb0]:1", ("fe80::1%eb0",)),
    "ipv6:[fe80::1%251]:1": Target("ipv6:[fe80::1%251]:1", "[fe80::1%1]:1", ("fe80::1%1",)),
    "dns:///[fe80::1%25eb0]:1": Target(
        "dns:///[fe80::1%25eb0]:1", "[fe80::1%eb0]:1", ("fe80::1%eb0",)
    ),
    "dns:50051": Target("dns:///dns:50051", "dns:50051", ("dns",)),
    "unix:50051": Target("dns:///unix:50051", "unix:50051", ("unix",)),
    "dns:///example.org:1": Target("dns:///example.org:1", "example.org:1", ("example.org",)),
    "dns:example.org:1": Target("dns:///example.org:1", "example.org:1", ("example.org",)),
    "DNS:/example.org:1": Target("dns:///example.org:1", "example.org:1", ("example.org",)),
    "dns:///localhost:1": Target("dns:///localhost:1", "localhost:1"),
    "dns://9.9.9.9:53/example.org:1": Target(
        "dns://9.9.9.9:53/example.org:1", "example.org:1", ("example.org",)
    ),
    "ipv4:10.0.0.1:1": Target("ipv4:10.0.0.1:1", "10.0.0.1:1", ("10.0.0.1",)),
    "ipv4:127.0.0.1:1": Target("ipv4:127.0.0.1:1", "127.0.0.1:1"),
    "ipv6:[::2]:1": Target("ipv6:[::2]:1", "[::2]:1", ("::2",)),
    "ipv4:10.0.0.1:1,10.0.0.2:2": Target(
        "ipv4:10.0.0.1:1,10.0.0.2:2", "", ("10.0.0.1", "10.0.0.2"), several=True
    ),
    "10.0.0.1:1, 10.0.0.2:2,": Target(
        "ipv4:10.0.0.1:1,10.0.0.2:2", "10.0.0.1:1", ("10.0.0.1", "10.0.0.2"), several=True
    ),
    "[::1]:1,[::2]:2": Target("ipv6:[::1]:1,[::2]:2", "[::1]:1", ("::2",), several=True),
    "unix:data/s": Target("unix:data/s"),
    "unix:/data/s": Target("unix:/data/s"),
    "unix:///data/s": Target("unix:/data/s"),
    "unix-abstract:name": Target("unix-abstract:name"),
    "xds:///name": Target("xds:///name", hosts=("name",)),
}
REFUSED = {
    "": "empty",
    " ": "empty",
    ",": "empty",
    "h": "no port",
    "h:": "no port",
    "h:0": "has chosen",
    "h:65536": "65535",
    "h:70000": "65535",
    "h:-1": "65535",
    "h:http": "65535",
    "::1:5": "needs brackets",
    "[::1]": "no port",
    "127.1:5": "not an IPv4 address",
    "h:5/": "'h:5'",
    "u:secret@h:5": "user name",
    "http://h:5": "is a URL; give HOST:PORT, such as 'h:5', and tls",
    "https://u:secret@h": "'h:50051', and tls",
    "grpc://h:5": "is a URL",
    "tcp://h:5": "not a kind of address",
    "vsock:2:5": "more than one colon",
    "bücher.example:5": "xn--bcher-kva.example",
    "a:1,b": "'b' is not an address: it has no port",
    "a:1,http://b:1": "is a URL",
    "a:1,unix:/s": "not an address",
    "a:1,dns:///b:1": "not a kind of address",
    "10.0.0.1:1,[::1]:2": "mix IPv4 and IPv6",
    "dns:///h": "no port",
    "dns:///": "empty",
    "dns://h:5": "dns:///HOST:PORT",
    "dns://9.9.9.9/h:5": "no port",
    "dns://ns.example:53/h:5": "not IP:PORT",
    "dns:///h:70000": "65535",
    "ipv4:10.0.0.1": "no port",
    "ipv4:h:5": "is not an IPv4 address and port",
    "ipv4:[::1]:5": "is not an IPv4 address and port",
    "ipv6:10.0.0.1:5": "is not an IPv6 address and port",
    "ipv6:::1:5": "needs brackets",
    "ipv4:": "empty",
    "unix:": "no path",
    "unix://relative": "unix:///PATH",
    "unix:/a b": "cannot have ' '",
    f"unix:/{'a' * 107}": "at most 107 characters, this one has 108",
    "unix-abstract:": "has no name",
    "xds:///": "xds:///NAME",
}


@pytest.fixture(autouse=True)
def _bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a mesh: xds targets are accepted."""
    monkeypatch.setenv("GRPC_XDS_BOOTSTRAP", "/etc/xds.json")


def test_an_xds_target_needs_a_bootstrap_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRPC_XDS_BOOTSTRAP")
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidRequest, match="set GRPC_XDS_BOOTSTRAP to the path of gRPC's"):
            kind("xds:///name")
    monkeypatch.setenv("GRPC_XDS_BOOTSTRAP_CONFIG", "{}")
    assert parse_target("xds:///name").name == "xds:///name"


@pytest.mark.parametrize("text", ACCEPTED)
def test_a_target_is_converted_for_grpc(text: str) -> None:
    assert parse_target(text) == ACCEPTED[text]


@pytest.mark.parametrize("text", REFUSED)
def test_a_wrong_target_is_refused_by_both_clients(text: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidRequest, match=REFUSED[text]) as caught:
            kind(text)
        assert str(caught.value).startswith("target: ")
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", [text for text in ACCEPTED if "xds" not in text])
def test_grpc_takes_every_target(text: str) -> None:
    """Without a look-up: the channel is created and closed."""
    with grpc.insecure_channel(parse_target(text).name):
        pass


@pytest.mark.parametrize("target", [None, 50051, b"127.0.0.1:50051", ("127.0.0.1", 50051)])
def test_a_target_that_is_no_text_is_refused(target: Any) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidRequest, match=r"^target: must be text, HOST:PORT"):
            kind(target)


def test_all_addresses_of_a_list_are_checked_before_the_first_is_looked_up() -> None:
    with pytest.raises(InvalidRequest, match="65535"):
        parse_target("somewhere.example:1,elsewhere.example:70000")


@pytest.mark.parametrize("text", ["h:70000", "http://h:1", "", "h"])
def test_the_command_line_says_where_an_address_is_from(
    run: Any, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    code, out, error = run("models", "--server", text)
    assert (code, out) == (2, "")
    assert error.startswith("multigrain models: --server: ")
    monkeypatch.setenv("MULTIGRAIN_SERVER", text)
    code, _, error = run("models")
    assert code == 2
    assert error.startswith("multigrain models: MULTIGRAIN_SERVER: ")
    assert "HOST:PORT" in error

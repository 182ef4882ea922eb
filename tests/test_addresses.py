"""Addresses, as the daemon and the client read them."""

from __future__ import annotations

import ipaddress
import re

import pytest

from multigrain.addresses import (
    AddressError,
    host_port,
    is_loopback,
    is_this_machine,
    socket_path,
)

HOSTS = (
    "localhost",
    "a",
    "example.org",
    "example.org.",
    "a_b",
    "xn--bcher-kva.example",
    "-a",
    "127.0.0.1",
    "10.255.0.1",
    "[::1]",
    "[2001:db8::5]",
    "[::ffff:10.0.0.1]",
    "[fe80::1%eth0]",
    "a" * 63,
    ".".join(["a" * 61] * 4),
)
WRONG_HOSTS = {
    "": "no host",
    "::1": "needs brackets",
    "2001:db8::5": "needs brackets",
    "[::1": "not closed",
    "[1.2.3.4]": "not an IPv6 address",
    "[a]": "not an IPv6 address",
    "[::1]x": "not a port",
    "a:b": "more than one colon",
    "a b": "cannot have ' '",
    "a\tb": r"cannot have '\\t'",
    "a\x1b[31m": r"cannot have '\\x1b'",
    "a/b": "cannot have '/'",
    "*": r"cannot have '\*'",
    "127.1": "not an IPv4 address",
    "2130706433": "not an IPv4 address",
    "0x7f000001": "not an IPv4 address",
    "256.0.0.1": "not an IPv4 address",
    "1.2.3.4.": "not an IPv4 address",
    "a..b": "is empty",
    ".a": "is empty",
    "a" * 64: "at most 253 characters, and 63",
    ".".join(["a" * 60] * 5): "at most 253",
    "bücher.example": "ASCII form, 'xn--bcher-kva.example'",
    "straße.example": r"ASCII form \(xn--",
    "\uff11\uff12\uff17.0.0.1": "ASCII form, '127.0.0.1'",
    "a\u2028b": "ASCII",
}
WRONG_PORTS = {
    "": "no port",
    "65536": "1 to 65535",
    "70000": "1 to 65535",
    "99999999999999999999": "1 to 65535",
    "-1": "1 to 65535",
    "+5": "1 to 65535",
    "http": "1 to 65535",
    "1_0": "1 to 65535",
    " 5": "1 to 65535",
    "5 5": "1 to 65535",
    "0x50": "1 to 65535",
    "\uff15": "1 to 65535",
    "\u0665": "1 to 65535",
    "²": "1 to 65535",
    "5.0": "1 to 65535",
    "1e3": "1 to 65535",
    "5/": "nothing may follow the port; give HOST:PORT, such as 'h:5'",
    "5/path": "nothing may follow the port",
    "5?x": "1 to 65535",
}
URLS = {
    "http://h:5": "'h:5', and tls for TLS",
    "https://h:5/": "'h:5', and tls",
    "HTTPS://h": "'h:50051', and tls",
    "grpc://[::1]:5": r"'\[::1\]:5', and tls",
    "grpcs://h:5/path?q#f": "'h:5', and tls",
    "http://": "'127.0.0.1:50051', and tls",
    "tcp://h:5": "tcp:// is not a kind of address; .*'h:5'",
    "ftp://h": "ftp:// is not a kind of address",
}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("port", ["1", "443", "50051", "65535", "00080"])
def test_every_host_and_port_is_read(host: str, port: str) -> None:
    address = host_port(f"{host}:{port}")
    assert (address.host, address.port) == (host.strip("[]"), int(port))
    assert str(address) == f"{host}:{int(port)}"
    assert host_port(f" {address}\n") == address


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("port", WRONG_PORTS)
def test_every_wrong_port_is_refused(host: str, port: str) -> None:
    for any_free_port in (False, True):
        with pytest.raises(AddressError, match=WRONG_PORTS[port].replace("'h:5'", ".*:5'")):
            host_port(f"{host}:{port}", any_free_port=any_free_port)


@pytest.mark.parametrize("host", WRONG_HOSTS)
def test_every_wrong_host_is_refused(host: str) -> None:
    with pytest.raises(AddressError, match=WRONG_HOSTS[host]) as caught:
        host_port(f"{host}:5")
    assert "give " in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("host", HOSTS)
def test_an_address_without_a_port_is_refused_with_the_default_port(host: str) -> None:
    with pytest.raises(AddressError, match="it has no port") as caught:
        host_port(host)
    suggested = re.search(r"such as '(.*)'$", str(caught.value))
    assert suggested is not None
    assert str(host_port(suggested[1])) == f"{host}:50051"


def test_port_0_is_for_listening() -> None:
    assert host_port("h:0", any_free_port=True).port == 0
    with pytest.raises(AddressError, match="give the port it has chosen"):
        host_port("h:0")


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_an_empty_address_is_refused(text: str) -> None:
    with pytest.raises(AddressError, match=r"empty; give HOST:PORT, such as 127\.0\.0\.1:50051"):
        host_port(text)


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_refused_with_its_host_and_port(url: str) -> None:
    with pytest.raises(AddressError, match=URLS[url]):
        host_port(url)


@pytest.mark.parametrize(
    "text", ["u:secret@h:5", "secret@h:5", "http://u:secret@h:5/", "tcp://secret@h:5", "u:secret@"]
)
def test_a_user_name_or_password_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        host_port(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "path"), [("unix:/a/b", "/a/b"), ("unix:a", "a"), ("unix:///a/b", "/a/b")]
)
def test_the_path_of_a_socket_is_read(text: str, path: str) -> None:
    assert socket_path(text) == path


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("unix:", "it has no path"),
        ("unix://", "unix:PATH"),
        ("unix://a/b", "unix:///PATH"),
        ("unix:/a b", "cannot have ' '"),
        ("unix:/a,/b", "cannot have ','"),
        ("unix:/a%20b", "cannot have '%'"),
        ("unix:/ä", "cannot have 'ä'"),
        ("unix:/a\0b", r"cannot have '\\x00'"),
    ],
)
def test_a_wrong_path_of_a_socket_is_refused(text: str, why: str) -> None:
    with pytest.raises(AddressError, match=why):
        socket_path(text)


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost", "127.0.0.1", "127.255.0.9", "::1", "::ffff:127.0.0.1"]
)
def test_loopback_hosts_are_known(host: str) -> None:
    assert is_loopback(host)
    assert is_this_machine(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "a.localhost", "localhost."])
def test_hosts_that_connect_to_this_machine_are_not_safe_to_listen_on(host: str) -> None:
    assert not is_loopback(host)
    assert is_this_machine(host)


@pytest.mark.parametrize(
    "host", ["localhost.evil", "notlocalhost", "128.0.0.1", "10.0.0.1", "::2", "example.org", ""]
)
def test_other_hosts_are_other_machines(host: str) -> None:
    assert not is_this_machine(host)


def test_ip_addresses_agree_with_the_standard_library() -> None:
    for number in (0, 1, 2**24, 127 * 2**24, 128 * 2**24 - 1, 2**32 - 1):
        address = ipaddress.IPv4Address(number)
        assert is_loopback(str(address)) == address.is_loopback


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("::1:7711", "needs brackets: 7711 may be the port or its end; give '[::1]:7711', or "
         "'[::1:7711]:50051'"),
        ("2001:db8::1:80", "give '[2001:db8::1]:80', or '[2001:db8::1:80]:50051'"),
        ("::1:ffff", "needs brackets; give HOST:PORT, such as '[::1:ffff]:50051'"),
        ("::1:0", "needs brackets; give HOST:PORT, such as '[::1:0]:50051'"),
        ("::1:77110", "needs brackets; give HOST:PORT, such as '[::1]:"),
        ("1:2:3:4:5:6:7:8", "needs brackets; give HOST:PORT, such as '[1:2:3:4:5:6:7:8]:50051'"),
    ],
)  # fmt: skip
def test_an_ipv6_address_without_brackets_says_what_it_may_be(text: str, why: str) -> None:
    with pytest.raises(AddressError) as caught:
        host_port(text)
    assert why in str(caught.value)

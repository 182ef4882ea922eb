"""Targets, TLS, keepalive and errors of the connection."""

from __future__ import annotations

import os

import grpc
import pytest

from multigrain_client import AsyncClient, Client, InvalidRequest, Tls
from multigrain_client.channel import channel_config
from multigrain_client.errors import from_rpc


@pytest.mark.parametrize(
    ("target", "resolved"),
    [
        ("example.org:50051", "example.org:50051"),
        ("10.0.0.1:1, 10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("[::1]:1,[::2]:2", "ipv6:[::1]:1,[::2]:2"),
    ],
)
def test_targets_are_converted_for_grpc(target, resolved):
    config = channel_config(target)
    assert config.target == resolved
    assert (
        "grpc.service_config",
        '{"loadBalancingConfig": [{"round_robin": {}}]}',
    ) in config.options


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("https://10.0.0.1:50051/", r"is a URL; give HOST:PORT, such as '10\.0\.0\.1:50051'"),
        ("", "give HOST:PORT"),
        ("a,b:2", "'a' is not an address: it has no port; give HOST:PORT, such as 'a:50051'"),
        ("10.0.0.1:1,[::1]:2", "mix IPv4 and IPv6"),
    ],
)
def test_invalid_target_is_refused_with_the_reason(target, message):
    with pytest.raises(InvalidRequest, match=message):
        channel_config(target)


@pytest.mark.parametrize(
    ("why", "hint"),
    [
        ("Connection refused", "running there"),
        ("Tls handshake failed (TSI_PROTOCOL_FAILURE)", "certificate authority that you expect"),
        ("Socket closed", "this client does not"),
        ("Socket closed", "need a client certificate"),
        ("Failed parsing HTTP/2 (Trying to connect an http1.x server)", "use the gRPC address"),
    ],
)
def test_unreachable_server_error_has_a_hint(why, hint):
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details=why
    )
    assert hint in str(from_rpc(error, "Embed", "a:1"))


def test_token_is_not_in_the_repr():
    assert "secret" not in repr(channel_config("a:1", token="secret"))


def test_certificate_requires_its_key(tmp_path):
    with pytest.raises(InvalidRequest, match="must be given together"):
        channel_config("a:1", tls=Tls(certificate=b"x"))
    with pytest.raises(InvalidRequest, match="cannot read the ca file"):
        channel_config("a:1", tls=Tls(ca=tmp_path / "none.pem"))


def test_keepalive_sets_the_ping_interval():
    options = dict(channel_config("here:1", keepalive=5.0).options)
    assert options["grpc.keepalive_time_ms"] == 5000
    assert "grpc.keepalive_time_ms" not in dict(channel_config("here:1", keepalive=0).options)


@pytest.mark.parametrize(
    "token",
    [
        "sec\nret",
        "secret\n\x1b",
        "sec\tret",
        "\n",
        "\r\n",
        b"secret",
        "s\u00fccret",
        "caf\udce9",
        "\x7f",
        " secret",
        "日本",
    ],
)
def test_token_that_no_header_can_hold_is_refused_without_showing_it(token):
    with pytest.raises(InvalidRequest, match=r"^token: ") as caught:
        channel_config("127.0.0.1:50051", token=token)
    shown = str(caught.value)
    assert "sec" not in shown
    assert "ret" not in shown
    assert shown.isascii()
    assert "\n" not in shown


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_newlines_at_the_end_of_a_token_are_dropped(kind, end):
    client = kind("127.0.0.1:50051", token=f"secret{end}")
    assert client._transport.config.metadata == (("authorization", "Bearer secret"),)


BAD_SECONDS = [0, 0.0, -1, float("nan"), float("inf"), float("-inf"), 1e10, "5", True]


@pytest.mark.parametrize("seconds", BAD_SECONDS)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_an_invalid_timeout_is_refused_by_the_constructor(kind, seconds):
    with pytest.raises(InvalidRequest, match=r"^timeout: "):
        kind("127.0.0.1:1", timeout=seconds)
    if seconds != 0:
        with pytest.raises(InvalidRequest, match=r"^keepalive: "):
            kind("127.0.0.1:1", keepalive=seconds)


@pytest.mark.parametrize("seconds", BAD_SECONDS)
@pytest.mark.parametrize(
    "call",
    [
        lambda client, seconds: client.job("job-1", timeout=seconds),
        lambda client, seconds: client.health(timeout=seconds),
        lambda client, seconds: client.embed([b"1"], timeout=seconds),
        lambda client, seconds: client.wait("job-1", timeout=seconds),
        lambda client, seconds: list(client.stream_events("job-1", timeout=seconds)),
        lambda client, seconds: client.download_model("m", os.devnull, timeout=seconds),
    ],
)
def test_an_invalid_timeout_is_refused_by_every_kind_of_call(
    make_client, server, state, call, seconds
):
    with pytest.raises(InvalidRequest, match=r"^timeout: "):
        call(make_client(server.address), seconds)
    assert not state.calls

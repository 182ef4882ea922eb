"""Targets, TLS, keepalive and errors of the connection."""

from __future__ import annotations

import grpc
import pytest

from multigrain_client import InvalidRequest, Tls
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
    "token", ["secret\n", "s\u00fccret", "caf\udce9", "\x7f", " secret", "日本"]
)
def test_token_that_no_header_can_hold_is_refused_without_showing_it(token):
    with pytest.raises(InvalidRequest, match=r"^token: ") as caught:
        channel_config("127.0.0.1:50051", token=token)
    assert token.strip() not in str(caught.value)

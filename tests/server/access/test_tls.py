"""TLS of the daemon, on real connections."""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import grpc
import grpc.aio
import pytest
import trustme
from structlog.testing import capture_logs

from multigrain.v1.job_pb2 import ListJobsRequest
from multigrain.v1.job_pb2_grpc import JobServiceStub
from multigrain_client import AsyncClient, Client, Tls, Unauthenticated
from multigrain_server.access.config import AccessConfig
from multigrain_server.grpc.tls import Certificates, TlsError
from tests.server.access.certificates import Files
from tests.server.access.daemon import daemon, write_tokens


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> Files:
    made = Files(tmp_path)
    made.issue(authority)
    return made


def _client(authority: trustme.CA, certificate: trustme.LeafCert | None = None) -> Tls:
    if certificate is None:
        return Tls(ca=authority.cert_pem.bytes())
    return Tls(
        ca=authority.cert_pem.bytes(),
        certificate=b"".join(part.bytes() for part in certificate.cert_chain_pems),
        key=certificate.private_key_pem.bytes(),
    )


def _channel(address: str, tls: Tls) -> grpc.aio.Channel:
    # Of its own: channels to one address would share a connection.
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.secure_channel(address, tls.credentials(), options=options)


async def _works(channel: grpc.aio.Channel) -> bool:
    try:
        await JobServiceStub(channel).ListJobs(ListJobsRequest(), timeout=60)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False
    return True


async def test_only_clients_that_trust_the_authority_connect(
    files: Files, authority: trustme.CA, tmp_path: Path
) -> None:
    tokens = write_tokens(tmp_path / "tokens", "watcher:read")
    access = AccessConfig(tokens=tmp_path / "tokens")
    async with daemon(tmp_path, tls=files.config(), access=access) as app:
        tls = Tls(ca=authority.cert_pem.bytes())
        async with AsyncClient(app.address, tls=tls, token=tokens["watcher"]) as client:
            assert [job async for job in client.jobs()] == []
        async with AsyncClient(app.address, tls=tls) as client:
            with pytest.raises(Unauthenticated):
                await client.job("job-1")

        def blocking() -> list[object]:
            with Client(app.address, tls=tls, token=tokens["watcher"]) as client:
                return list(client.jobs())

        assert await asyncio.to_thread(blocking) == []
        async with _channel(app.address, Tls(ca=trustme.CA().cert_pem.bytes())) as channel:
            assert not await _works(channel)
        async with grpc.aio.insecure_channel(app.address) as channel:
            assert not await _works(channel)


async def test_reloaded_certificate_is_used_for_new_connections(
    files: Files, authority: trustme.CA, tmp_path: Path
) -> None:
    renewed = trustme.CA()
    async with daemon(tmp_path, tls=files.config()) as app:
        async with _channel(app.address, Tls(ca=authority.cert_pem.bytes())) as old:
            assert await _works(old)
            files.issue(renewed)
            async with _channel(app.address, Tls(ca=renewed.cert_pem.bytes())) as new:
                assert await _works(new)
            assert await _works(old)
        async with _channel(app.address, Tls(ca=authority.cert_pem.bytes())) as late:
            assert not await _works(late)


async def test_certificate_expiry_metric(
    files: Files, authority: trustme.CA, tmp_path: Path
) -> None:
    name = "multigrain_certificate_expiry_timestamp_seconds"
    end = datetime(2090, 5, 6, tzinfo=UTC)
    async with daemon(tmp_path, tls=files.config()) as app:
        assert app.registry.get_sample_value(name) != end.timestamp()
        files.issue(authority, not_after=end)
        async with _channel(app.address, Tls(ca=authority.cert_pem.bytes())) as channel:
            assert await _works(channel)
        assert app.registry.get_sample_value(name) == end.timestamp()
    async with daemon(tmp_path) as app:
        assert app.registry.get_sample_value(name) == math.inf


async def test_failed_reload_keeps_the_previous_certificates(
    files: Files, authority: trustme.CA, tmp_path: Path
) -> None:
    tls = Tls(ca=authority.cert_pem.bytes())
    async with daemon(tmp_path, tls=files.config()) as app:
        good = (tmp_path / "server.key").read_bytes()
        for content in (authority.issue_cert("x").private_key_pem.bytes(), b"", good[:100]):
            (tmp_path / "server.key").write_bytes(content)
            with capture_logs() as logs:
                async with _channel(app.address, tls) as channel:
                    assert await _works(channel)
                async with _channel(app.address, tls) as channel:
                    assert await _works(channel)
            # Once for a state of the files, however many connections come.
            assert [log["event"] for log in logs].count(
                "certificate reload failed; keeping the previous ones"
            ) == 1
            assert good.decode()[30:90] not in str(logs)
        files.issue(authority)
        with capture_logs() as logs:
            async with _channel(app.address, tls) as channel:
                assert await _works(channel)
        assert "certificates reloaded" in {log["event"] for log in logs}


async def test_mutual_tls_needs_a_client_certificate(
    files: Files, authority: trustme.CA, tmp_path: Path
) -> None:
    async with daemon(tmp_path, tls=files.config(mutual=True)) as app:
        ours = authority.issue_cert("caller@example.org")
        theirs = trustme.CA().issue_cert("caller@example.org")
        for certificate, works in ((ours, True), (theirs, False), (None, False)):
            async with _channel(app.address, _client(authority, certificate)) as channel:
                assert await _works(channel) == works
        # Another authority from now on, without a restart.
        renewed = trustme.CA()
        renewed.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        certificate = renewed.issue_cert("caller@example.org")
        async with _channel(app.address, _client(authority, certificate)) as channel:
            assert await _works(channel)
        async with _channel(app.address, _client(authority, ours)) as channel:
            assert not await _works(channel)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("server.pem", None, "server.pem: No such file"),
        ("server.key", b"no key", "are not a certificate and its key"),
        ("ca.pem", b"nothing", "ca.pem has no certificates"),
    ],
)
def test_unusable_certificate_files_are_named(
    files: Files, tmp_path: Path, name: str, content: bytes | None, says: str
) -> None:
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TlsError, match=says):
        Certificates(files.config(mutual=True))


def _request(
    port: int, context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> tuple[bytes, ssl.SSLSession | None]:
    """A request over TLS; returns the status line, empty if refused, and the session."""
    answer, made = b"", None
    with (
        suppress(OSError),
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="localhost", session=session) as sock,
    ):
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while data := sock.recv(4096):
            answer += data
        made = sock.session
    return answer.partition(b"\r\n")[0], made


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_no_session_outlives_the_authority_of_its_client(
    files: Files, authority: trustme.CA, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    old, new = trustme.CA(), trustme.CA()
    client_ca = tmp_path / "clients.pem"
    client_ca.write_bytes(old.cert_pem.bytes())
    context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    context.maximum_version = version
    old.issue_cert("client").configure_cert(context)
    tls = files.config().model_copy(update={"client_ca": client_ca, "http": True})
    async with daemon(tmp_path, tls=tls, http=True) as app:
        port = int(app.http_address.rpartition(":")[2])
        status, session = await asyncio.to_thread(_request, port, context)
        assert status == b"HTTP/1.1 200 OK"
        client_ca.write_bytes(new.cert_pem.bytes())
        for resumed in (None, session):
            status, _ = await asyncio.to_thread(_request, port, context, resumed)
            assert status == b""


async def test_unfinished_handshakes_make_room_for_others(
    files: Files, authority: trustme.CA, tmp_path: Path
) -> None:
    context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    tls = files.config().model_copy(update={"http": True})
    async with daemon(tmp_path, tls=tls, http=True) as app:
        assert app._http is not None
        port = int(app.http_address.rpartition(":")[2])
        acceptor = app._http.connections
        acceptor._limits = replace(acceptor._limits, per_host=4, request_seconds=600.0)
        with ExitStack() as stack:
            for number in range(12):
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                status, _ = await asyncio.to_thread(_request, port, context)
                assert status == b"HTTP/1.1 200 OK", number
                assert len(acceptor) <= 4
        async with asyncio.timeout(60):
            while len(acceptor):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

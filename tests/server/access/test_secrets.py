"""Tokens and keys leak nowhere: not in logs, files, metrics, pages or responses."""

from __future__ import annotations

import contextlib
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
import trustme

from multigrain.v1.job_pb2 import ListJobsRequest
from multigrain.v1.job_pb2_grpc import JobServiceStub
from multigrain_client import Client, Tls, Unauthenticated
from multigrain_server.access.tokens import NewToken
from tests.e2e.daemon import Daemon
from tests.engine.pictures import picture
from tests.server.access.certificates import Files
from tests.server.access.daemon import write_tokens

pytestmark = pytest.mark.process


def test_tokens_and_keys_leak_nowhere(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens.yaml", "boss:admin", "watcher:read")
    wrong = NewToken.parse("stranger:admin").token
    (tmp_path / "tls").mkdir()
    files, authority = Files(tmp_path / "tls"), trustme.CA()
    files.issue(authority)
    flags = [
        "--log-level=debug",
        f"--access-tokens={tmp_path / 'tokens.yaml'}",
        f"--tls-certificate={tmp_path / 'tls' / 'server.pem'}",
        f"--tls-key={tmp_path / 'tls' / 'server.key'}",
    ]
    images = tmp_path / "images" / "class"
    images.mkdir(parents=True)
    (images / "1.png").write_bytes(picture(1))
    received: list[str] = []
    daemon = Daemon(tmp_path, [tmp_path / "images"], flags, "tests.server.fake_daemon").start()
    try:
        address, tls = daemon.address, Tls(ca=authority.cert_pem.bytes())
        trusted = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        for token in (tokens["boss"], tokens["watcher"], wrong):
            for page in ("metrics", "", "readyz"):
                request = urllib.request.Request(f"http://{daemon.http_address}/{page}")
                request.add_header("Authorization", f"Bearer {token}")
                with contextlib.suppress(urllib.error.HTTPError):
                    received.append(urllib.request.urlopen(request, timeout=60).read().decode())
            with grpc.secure_channel(address, trusted) as channel:
                for metadata in (
                    [("authorization", f"Bearer {token}")],
                    [("authorization", f"Basic {token}")],
                    [("x-request-id", "mine"), ("authorization", f"bearer  {token} ")],
                ):
                    try:
                        JobServiceStub(channel).ListJobs(
                            ListJobsRequest(page_token="?"), metadata=metadata, timeout=60
                        )
                    except grpc.RpcError as error:
                        received.append(f"{error.details()} {error.trailing_metadata()}")
        with Client(address, token=tokens["boss"], tls=tls) as client:
            job = client.start_training(
                preset="digits-demo",
                dataset={"train_path": str(tmp_path / "images"), "val_path": ""},
                labels={"events": "3", "end": "FAILED"},
            )
            received += [str(event) for event in client.stream_events(job)]
            received += [str(client.job(job)), str(list(client.models("")))]
        with (
            Client(address, token=wrong, tls=tls) as client,
            pytest.raises(Unauthenticated) as caught,
        ):
            client.job(job)
        received.append(str(caught.value))
        assert daemon.stop() == 0
    finally:
        daemon.end()
    written = [path for path in daemon.data_dir.rglob("*") if path.is_file()]
    assert {"events.jsonl", "spec.json", "state.db"} <= {path.name for path in written}
    everything = b"\n".join(path.read_bytes() for path in (daemon.log, *written))
    everything += "\n".join(received).encode()
    assert b"watcher" in everything  # the name of a token is no secret
    key = (tmp_path / "tls" / "server.key").read_bytes().splitlines()[2]
    for secret in (tokens["boss"], tokens["watcher"], wrong):
        assert secret.encode() not in everything
    assert key not in everything

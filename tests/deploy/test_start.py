"""The container's command where all but its data is read-only, as a user who may do nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from multigrain_client import Client
from multigrain_client.errors import Unauthenticated
from multigrain_server.access.tokens import NewToken
from tests.deploy.named import DEPLOY, container_command
from tests.deploy.tools import system
from tests.engine.bundles import write_bundle
from tests.engine.pictures import picture

NOBODY = 65534
TOKEN = NewToken.parse("admin:admin")
# In a mount namespace of its own: everything read-only but the folder in $1, then a user without
# any capability but to find this Python and this clone, which may lie in root's home.
CONFINE = """
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
mount -o remount,bind,ro /
cd "$1"; shift
caps=-all,+dac_read_search
exec setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs \
    --bounding-set=$caps --inh-caps=$caps --ambient-caps=$caps "$@"
"""


def confined(folder: Path, *words: str) -> list[str]:
    home = folder / "home"
    environment = [
        *("env", "-i", f"HOME={home}", f"TMPDIR={folder / 'tmp'}", "PYTHONDONTWRITEBYTECODE=1"),
        f"PATH={Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
    ]
    return ["unshare", "--mount", "sh", "-c", CONFINE, "sh", str(folder), *environment, *words]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The writable folders of the container; the models in it belong to another user."""
    for tool in ("unshare", "setpriv", "mount"):
        system(tool)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "tokens.yaml").write_text(f"{TOKEN.line}\n")
    for name in ("home", "tmp", "data"):
        (tmp_path / name).mkdir()
        if os.geteuid() == 0:
            os.chown(tmp_path / name, NOBODY, NOBODY)
    write_bundle(tmp_path / "data" / "models")
    tried = subprocess.run(confined(tmp_path, "true"), capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"needs root, and mount namespaces: {tried.stderr.strip()}")
    return tmp_path


@pytest.fixture
def daemon(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    words = [
        word.replace("/var/lib/multigrain", str(folder / "data"))
        .replace("/etc/multigrain", str(folder / "etc"))
        .replace(":50051", ":0")
        .replace(":9464", ":0")
        for word in container_command()
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            confined(folder, *words, "--log-format=json"), stdout=log, stderr=log
        )
    yield process
    process.kill()
    process.wait()


def test_container_command_serves_confined_and_shuts_down(
    folder: Path, daemon: subprocess.Popen[bytes]
) -> None:
    for path in (DEPLOY.parent / "x", folder.parent / "x", Path("/tmp/x")):
        assert subprocess.run(
            confined(folder, "touch", str(path)), stderr=subprocess.DEVNULL
        ).returncode, path
    address = folder / "data" / "address"
    deadline = time.monotonic() + 120
    while not address.exists():
        assert daemon.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.05)
    first = json.loads((folder / "log").read_text().splitlines()[0])
    grpc_port, http_port = (first[name].rpartition(":")[2] for name in ("address", "http"))
    with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/readyz", timeout=60) as answer:
        assert answer.status == 200
    with (
        Client(f"127.0.0.1:{grpc_port}") as unknown,
        pytest.raises(Unauthenticated),
    ):
        list(unknown.models())
    with Client(f"127.0.0.1:{grpc_port}", token=TOKEN.token) as client:
        client.load_model("tiny", make_default=True)
        assert client.embed(picture(1)).shape[0] == 1
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(120) == 0
    log = (folder / "log").read_text()
    assert "Read-only file system" not in log
    assert "Permission denied" not in log

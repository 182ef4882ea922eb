"""The file of tokens."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from pathlib import Path

import pytest
import structlog
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_client import AsyncClient, Forbidden, Unauthenticated
from multigrain_server.access.access import Access
from multigrain_server.access.config import AccessConfig
from multigrain_server.access.policy import Role
from multigrain_server.access.tokens import NewToken, TokenFile, TokenFileError, read_tokens
from multigrain_server.main import main
from multigrain_server.metrics.daemon import register_tokens
from tests.hostile_files import KINDS, alarm, put
from tests.server.access.daemon import daemon, write_tokens
from tests.server.serving.harness import until

LIST_JOBS = "/multigrain.v1.JobService/ListJobs"


def enter(access: Access, method: str, *tokens: str) -> str:
    """Makes a call that ends at once; returns the name of its token."""
    metadata = [("authorization", f"Bearer {token}") for token in tokens]
    with access.enter(method, metadata) as token_name:
        return token_name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.yaml"


def test_tokens_are_found_by_their_hash(path: Path) -> None:
    tokens = write_tokens(path, "backend:infer,read", "robot:train")
    file = TokenFile(path)
    found = file.find(tokens["backend"])
    assert found is not None
    assert (found.name, found.roles) == ("backend", (Role.INFER, Role.READ))
    assert found.sha256 == hashlib.sha256(tokens["backend"].encode()).hexdigest()
    assert file.find(tokens["backend"][:-1]) is None
    assert file.find("") is None
    assert len({NewToken.parse("a:read").token for _ in range(100)}) == 100


def test_every_entry_is_compared_in_constant_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = write_tokens(path, "a:read", "b:read", "c:read")
    file = TokenFile(path)
    compared: list[str] = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(a) or compare(a, b))
    for token in (*tokens.values(), "unknown"):
        file.find(token)
    assert len(compared) == 4 * 3


def test_changed_token_file_is_reloaded(path: Path) -> None:
    old = write_tokens(path, "a:read")["a"]
    file = TokenFile(path, check_seconds=0)
    assert file.find(old) is not None
    new = write_tokens(path, "a:read")["a"]
    assert file.find(old) is None
    assert file.find(new) is not None
    # Replaced by renaming, with the same size and time.
    other = path.with_suffix(".new")
    newest = write_tokens(other, "a:read")["a"]
    stat = path.stat()
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.rename(path)
    assert file.find(newest) is not None


@pytest.mark.parametrize("content", ["- {name: a, roles: [root]}", "a: [", None])
def test_failed_reload_keeps_the_previous_tokens(path: Path, content: str | None) -> None:
    token = write_tokens(path, "a:read")["a"]
    file = TokenFile(path, check_seconds=0)
    with capture_logs() as logs:
        if content is None:
            path.unlink()
        else:
            path.write_text(content)
        assert file.find(token) is not None
        assert file.find(token) is not None
    assert [log["event"] for log in logs] == [
        "token file reload failed; keeping the previous tokens"
    ]


@pytest.mark.parametrize("content", ["[]", "a: ["])
def test_a_reload_is_not_logged_as_part_of_a_call(path: Path, content: str) -> None:
    write_tokens(path, "a:read")
    file = TokenFile(path, check_seconds=0)
    path.write_text(content)
    with (
        structlog.contextvars.bound_contextvars(request_id="of some call"),
        capture_logs([structlog.contextvars.merge_contextvars]) as logs,
    ):
        file.find("unknown")
    (line,) = logs
    assert "request_id" not in line


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("tokens: 3", "tuple"),
        ("- {name: a, roles: [read]}", "0.sha256"),
        ("- {name: a, roles: [], sha256: '%s'}" % ("0" * 64), "0.roles"),
        ("- {name: a, roles: [read], sha256: secret}", "0.sha256"),
        ("- {name: a b, roles: [read], sha256: '%s'}" % ("0" * 64), "0.name"),
        ("- {name: a, roles: [read], sha256: '%s'}\n" % ("0" * 64) * 2, "the same name"),
        ("a: [", "line 1, column 5: not YAML"),
        ("- {name: a, roles: [read], roles: [admin], sha256: '%s'}" % ("0" * 64), "set twice"),
    ],
)
def test_errors_of_token_files_do_not_quote_them(path: Path, content: str, says: str) -> None:
    path.write_text(content)
    with pytest.raises(TokenFileError) as caught:
        read_tokens(path)
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


def test_empty_token_file_refuses_everyone(path: Path) -> None:
    path.write_text("")
    with pytest.raises(MultigrainError) as caught:
        enter(Access(AccessConfig(tokens=path)), LIST_JOBS, "x")
    assert caught.value.kind is ErrorKind.UNAUTHENTICATED


def test_limits_in_the_token_file_apply_to_their_token(path: Path) -> None:
    tokens = write_tokens(path, "a:read", "b:read")
    path.write_text(path.read_text().replace('"a",', '"a", concurrent_calls: 1,'))
    access = Access(AccessConfig(tokens=path))
    metadata = [("authorization", f"Bearer {tokens['a']}")]
    with access.enter(LIST_JOBS, metadata):
        assert enter(access, LIST_JOBS, tokens["b"]) == "b"
        assert enter(access, "/grpc.health.v1.Health/Check", tokens["a"]) == ""
        with pytest.raises(MultigrainError) as caught:
            enter(access, LIST_JOBS, tokens["a"])
    assert caught.value.kind is ErrorKind.OVERLOADED
    assert enter(access, LIST_JOBS, tokens["a"]) == "a"


def test_without_a_token_file_every_call_is_allowed() -> None:
    assert enter(Access(AccessConfig()), "/any.Service/Call") == ""


def test_methods_without_a_rule_are_refused_to_admins_too(path: Path) -> None:
    token = write_tokens(path, "root:admin")["root"]
    access = Access(AccessConfig(tokens=path))
    assert enter(access, LIST_JOBS, token) == "root"
    with pytest.raises(MultigrainError) as caught:
        enter(access, "/multigrain.v1.JobService/NewCall", token)
    assert caught.value.kind is ErrorKind.FORBIDDEN
    with pytest.raises(MultigrainError):
        enter(access, LIST_JOBS, token, token)  # which of them would it be?


@pytest.mark.parametrize("special", ["health", "reflection"])
def test_access_to_health_and_reflection_is_configurable(path: Path, special: str) -> None:
    token = write_tokens(path, "a:infer")["a"]
    method = {
        "health": "/grpc.health.v1.Health/Check",
        "reflection": "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    }[special]
    enter(Access(AccessConfig(tokens=path, **{special: "open"})), method)
    closed = Access(AccessConfig(tokens=path, **{special: "token"}))
    with pytest.raises(MultigrainError):
        enter(closed, method)
    assert enter(closed, method, token) == "a"


async def test_clients_send_their_token_and_logs_have_its_name(
    tmp_path: Path, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tokens = write_tokens(path, "backend:infer", "watcher:read")
    async with daemon(tmp_path, access=AccessConfig(tokens=path)) as app:
        with capture_logs([structlog.contextvars.merge_contextvars]) as logs:
            async with AsyncClient(app.address, token=tokens["watcher"]) as client:
                assert [job async for job in client.jobs()] == []
            async with AsyncClient(app.address, token=tokens["backend"]) as client:
                with pytest.raises(Forbidden, match="backend needs the role admin or"):
                    await client.job("job-1")
            async with AsyncClient(app.address) as client:
                with pytest.raises(Unauthenticated, match="Bearer TOKEN"):
                    await client.job("job-1")
            # A line is written when the caller has its answer.
            await until(lambda: [log["event"] for log in logs].count("call") == 3)
    calls = [(log["code"], log.get("token")) for log in logs if log["event"] == "call"]
    assert calls == [("OK", "watcher"), ("PERMISSION_DENIED", None), ("UNAUTHENTICATED", None)]
    assert not any(token in str(logs) for token in tokens.values())


def test_new_token_prints_a_line_of_the_token_file(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--new-token", "backend:infer,read"]) == 0
    printed = capsys.readouterr()
    path.write_text(printed.out)
    token = printed.err.strip().rpartition(" ")[2]
    assert token not in printed.out
    found = TokenFile(path).find(token)
    assert found is not None
    assert found.roles == (Role.INFER, Role.READ)
    assert main(["--new-token", "backend:root"]) == 2
    assert "infer,train,admin,read" in capsys.readouterr().err


def test_unusable_token_or_certificate_files_prevent_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "missing")
    common = ["--data-dir", str(tmp_path / "data")]
    assert main([*common, "--access-tokens", missing]) == 1
    assert "missing: No such file" in capsys.readouterr().err
    assert main([*common, "--tls-certificate", missing, "--tls-key", missing]) == 1
    assert "missing: No such file" in capsys.readouterr().err


HOSTILE = [kind for kind in KINDS if kind not in ("unreadable", "number")]


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_token_file_is_refused_at_the_start(path: Path, kind: str) -> None:
    put(path, kind)
    with alarm():
        if kind == "empty":
            assert read_tokens(path) == ()
            return
        with pytest.raises(TokenFileError, match=r"tokens\.yaml"):
            read_tokens(path)


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_token_file_keeps_the_previous_tokens_and_says_so(path: Path, kind: str) -> None:
    """Also an empty one: an editor that truncates first would lock everybody out."""
    token = write_tokens(path, "a:read")["a"]
    content = path.read_text()
    file = TokenFile(path, check_seconds=0)
    assert file.stale_seconds == 0
    put(path, kind)
    with alarm(), capture_logs() as logs:
        for _ in range(5):
            assert file.find(token) is not None
        _wait_for_reader(file)
        assert file.find(token) is not None
    assert [log["event"] for log in logs] == [
        "token file reload failed; keeping the previous tokens"
    ]
    assert file.stale_seconds > 0
    if kind == "folder":
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_text(content)
    assert file.find(token) is not None
    assert file.stale_seconds == 0


def _wait_for_reader(file: TokenFile) -> None:
    if file._reader is not None:
        file._reader.join()


def test_an_explicit_empty_list_revokes_all_tokens(path: Path) -> None:
    token = write_tokens(path, "a:read")["a"]
    file = TokenFile(path, check_seconds=0)
    path.write_text("[]\n")
    assert file.find(token) is None
    assert file.stale_seconds == 0


def test_a_large_token_file_is_read_in_a_thread(path: Path) -> None:
    """Calls are answered meanwhile, with the previous tokens."""
    old = write_tokens(path, "a:read")["a"]
    file = TokenFile(path, check_seconds=0)
    new = write_tokens(path, *(f"t{number}:read" for number in range(200)))
    file.find(old)
    assert file._reader is not None
    _wait_for_reader(file)
    assert file.find(old) is None
    assert file.find(new["t199"]) is not None


def test_a_failed_reload_is_retried_and_logged_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a disk that did not answer: the file itself has not changed."""
    token = write_tokens(path, "a:read")["a"]
    file = TokenFile(path, check_seconds=0)
    path.write_text("a: [")
    monkeypatch.setattr("multigrain_server.access.tokens._RETRY_SECONDS", 0.0)
    with capture_logs() as logs:
        for _ in range(3):
            assert file.find(token) is not None
    assert len(logs) == 3


async def test_the_age_of_the_tokens_is_a_metric(tmp_path: Path) -> None:
    path = tmp_path / "tokens.yaml"
    write_tokens(path, "a:read")
    access = Access(AccessConfig(tokens=path))
    registry = CollectorRegistry()
    register_tokens(registry, access.tokens_stale_seconds)
    assert registry.get_sample_value("multigrain_tokens_stale_seconds") == 0
    path.unlink()
    tokens = access._tokens
    assert tokens is not None
    tokens._check_seconds = 0
    tokens.find("")
    stale = registry.get_sample_value("multigrain_tokens_stale_seconds")
    assert stale is not None
    assert stale > 0
    assert Access(AccessConfig()).tokens_stale_seconds() == 0

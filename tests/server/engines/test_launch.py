"""How the process of an engine is started."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from structlog.testing import capture_logs

from multigrain.engine.settings import EngineSettings
from multigrain.machine import THREAD_VARIABLES, Cpus
from multigrain.processes import python_command
from multigrain_server.engines import launch as launch_module
from multigrain_server.engines.config import ServingConfig
from multigrain_server.engines.launch import EngineSpec, launch

SPEC = EngineSpec("tiny@1", Path("/models/tiny/1"), "auto")


async def _settings(
    monkeypatch: pytest.MonkeyPatch, spec: EngineSpec, **fields: object
) -> EngineSettings:
    """The settings that the process would get, apart from its descriptors."""
    return (await _start(monkeypatch, spec, **fields))[0]


async def _start(
    monkeypatch: pytest.MonkeyPatch, spec: EngineSpec, **fields: object
) -> tuple[EngineSettings, dict[str, str]]:
    """As :func:`_settings`, and the environment that it would get."""
    started: list[tuple[str, ...]] = []
    environment: dict[str, str] = {}

    async def no_process(*command: str, env: dict[str, str], **_: Any) -> None:
        started.append(command)
        environment.update(env)
        raise OSError("short of processes")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", no_process)
    with pytest.raises(OSError, match="short of processes"):
        await launch(spec, ServingConfig(**fields))
    assert started[0][:4] == python_command("multigrain.engine")
    arguments = list(started[0][4:])
    settings = EngineSettings.parse(arguments)
    return settings.model_copy(update={"socket_fd": 0, "inflight_fd": 0}), environment


@pytest.mark.parametrize(
    ("field", "value", "setting"),
    [
        ("max_image_bytes", 1 << 20, "max_image_bytes"),
        ("max_image_pixels", 1_000_000, "max_image_pixels"),
        ("max_batch", 7, "max_batch"),
        ("decode_threads", 77, "decode_threads"),
        ("engine_threads", 78, "threads"),
        ("device", "gpu", "device"),
    ],
)
async def test_every_limit_that_is_set_reaches_the_engine(
    monkeypatch: pytest.MonkeyPatch, field: str, value: object, setting: str
) -> None:
    usual = await _settings(monkeypatch, SPEC)
    assert getattr(usual, setting) != value
    assert await _settings(monkeypatch, SPEC, **{field: value}) == usual.model_copy(
        update={setting: value}
    )


async def test_an_engine_that_serves_no_requests_yet_loads_at_a_low_priority(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    later = replace(SPEC, low_priority=True)
    assert (await _settings(monkeypatch, later)).low_priority
    assert not (await _settings(monkeypatch, SPEC)).low_priority


async def test_an_engine_that_cannot_be_started_leaves_no_descriptor_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await _settings(monkeypatch, SPEC)
    before = psutil.Process().num_fds()
    for _ in range(10):
        await _settings(monkeypatch, SPEC)
    assert psutil.Process().num_fds() == before


@pytest.mark.parametrize(
    ("cpus", "threads", "decode_threads", "variable"),
    [
        (Cpus(64, 64), 0, 64, None),
        (Cpus(64, 64, 1.5), 2, 2, "2"),
        (Cpus(64, 4), 4, 4, "4"),
        (Cpus(64, 64, 0.1), 1, 1, "1"),
    ],
)
async def test_an_engine_computes_on_the_cpus_that_the_daemon_may_use(
    monkeypatch: pytest.MonkeyPatch,
    cpus: Cpus,
    threads: int,
    decode_threads: int,
    variable: str | None,
) -> None:
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(launch_module, "cpus", lambda: cpus)
    settings, environment = await _start(monkeypatch, SPEC)
    assert (settings.threads, settings.decode_threads) == (threads, decode_threads)
    assert {environment.get(name) for name in THREAD_VARIABLES} == {variable}
    # What the operator has set counts.
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    settings, environment = await _start(monkeypatch, SPEC, engine_threads=5, decode_threads=6)
    assert (settings.threads, settings.decode_threads) == (5, 6)
    assert environment["OMP_NUM_THREADS"] == "7"


async def test_an_engine_gets_nothing_of_the_daemons_environment_that_it_does_not_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://user:secret@host")
    monkeypatch.setenv("COMPANY_DRIVER_PATH", "/opt/driver")
    monkeypatch.setenv("HOME", "/home/user")
    environment = (await _start(monkeypatch, SPEC))[1]
    assert not environment.keys() & {"DATABASE_URL", "COMPANY_DRIVER_PATH"}
    assert environment["HOME"] == "/nonexistent"
    fields = {"device": "gpu", "engine_environment": ("COMPANY_*",)}
    environment = (await _start(monkeypatch, SPEC, **fields))[1]
    assert environment["COMPANY_DRIVER_PATH"] == "/opt/driver"
    # A driver keeps compiled kernels there.
    assert environment["HOME"] == "/home/user"
    assert "DATABASE_URL" not in environment


async def test_the_mode_of_the_sandbox_reaches_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in ("auto", "off", "required"):
        assert (await _settings(monkeypatch, SPEC, sandbox=mode)).sandbox == mode


_TALKATIVE = "import sys; sys.stdout.write('flood\\n' * 20_000 + 'the reason\\n\\n'); sys.exit(3)"


@pytest.mark.process
async def test_an_engine_cannot_flood_the_log() -> None:
    with capture_logs() as lines:
        child = await launch(SPEC, ServingConfig(), (sys.executable, "-c", _TALKATIVE))
        await child.ended.wait()
        child.socket.close()
    logged = sum(line["event"] == "engine output" for line in lines)
    left_out = sum(line["lines"] for line in lines if line["event"] == "engine output left out")
    # Of 20,001, and the empty ones that are not logged.
    assert 0 < logged < 10_000
    assert 20_001 <= logged + left_out <= 20_004
    assert child.last_output == "the reason"
    assert child.end_reason == "exit code 3"

"""Signals that stop the daemon, and terminals that close."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.server.process import DaemonProcess

pytestmark = pytest.mark.process

Start = Callable[..., DaemonProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[DaemonProcess] = []

    def start(*flags: str, **options: Any) -> DaemonProcess:
        started.append(DaemonProcess(tmp_path / "data", flags, **options))
        return started[-1]

    yield start
    for daemon in started:
        daemon.end()


def ignoring(*numbers: signal.Signals) -> Callable[[], None]:
    """For ``preexec_fn``."""

    def ignore() -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    return ignore


def health(address: str) -> health_pb2.HealthCheckResponse.ServingStatus.ValueType:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return stub.Check(health_pb2.HealthCheckRequest(), timeout=60).status


def lines(daemon: DaemonProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in daemon.log.read_text().splitlines()]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_each_signal_drains_and_is_logged(start: Start, number: signal.Signals) -> None:
    daemon = start()
    daemon.wait_ready()
    daemon.popen.send_signal(number)
    assert daemon.popen.wait(timeout=60) == 0
    assert not (daemon.data_dir / "address").exists()
    received, *_, stopping, stopped = lines(daemon)[-3:]
    assert (received["event"], received["signal"]) == ("signal received", number.name)
    assert (stopping["event"], stopped["event"]) == ("stopping", "stopped")


def test_hangups_do_not_cut_the_drain_short(start: Start) -> None:
    daemon = start("--shutdown-keep-serving-seconds=600")
    address = daemon.wait_ready()
    for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
        count = daemon.log.read_text().count("signal received")
        daemon.popen.send_signal(number)
        wait_for(lambda: daemon.log.read_text().count("signal received") > count)  # noqa: B023
    wait_for(lambda: health(address) == health_pb2.HealthCheckResponse.NOT_SERVING)
    daemon.popen.send_signal(signal.SIGTERM)
    assert daemon.popen.wait(timeout=60) == 0
    assert "second signal: exiting without draining" in daemon.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_is_ignored_at_the_start_stays_ignored(
    start: Start, number: signal.Signals
) -> None:
    daemon = start(preexec_fn=ignoring(number))
    address = daemon.wait_ready()
    daemon.popen.send_signal(number)
    assert health(address) == health_pb2.HealthCheckResponse.SERVING
    daemon.popen.send_signal(signal.SIGTERM)
    assert daemon.popen.wait(timeout=60) == 0
    received = [line["signal"] for line in lines(daemon) if line["event"] == "signal received"]
    assert received == ["SIGTERM"]


def test_sigterm_stops_a_daemon_that_was_started_with_it_ignored(start: Start) -> None:
    daemon = start(preexec_fn=ignoring(signal.SIGTERM))
    daemon.wait_ready()
    daemon.popen.send_signal(signal.SIGTERM)
    assert daemon.popen.wait(timeout=60) == 0


def test_a_hangup_during_the_start_drains(start: Start) -> None:
    daemon = start()
    wait_for(lambda: "listening" in daemon.log.read_text())
    daemon.popen.send_signal(signal.SIGHUP)
    assert daemon.popen.wait(timeout=60) == 0
    assert lines(daemon)[-1]["event"] == "stopped"
    assert "Traceback" not in daemon.log.read_text()


# Sends itself a signal in the middle of the imports.
WHILE_IMPORTING = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "multigrain_server.app":
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Finder())
from multigrain_server.__main__ import main
sys.exit(main())
"""


def signaled_while_importing(
    number: signal.Signals, *arguments: str, **options: Any
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WHILE_IMPORTING.format(number=int(number)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_modules_are_imported_ends_the_daemon_with_one_log_line(
    tmp_path: Path, number: signal.Signals
) -> None:
    run = signaled_while_importing(
        number, "--data-dir", str(tmp_path / "data"), "--log-format=json"
    )
    assert run.returncode == 0
    (line,) = run.stderr.splitlines()
    assert (json.loads(line)["event"], json.loads(line)["signal"]) == (
        "signal received",
        number.name,
    )
    assert not (tmp_path / "data").exists()


def test_a_hangup_while_modules_are_imported_is_ignored_under_nohup(tmp_path: Path) -> None:
    run = signaled_while_importing(
        signal.SIGHUP, "--print-config", preexec_fn=ignoring(signal.SIGHUP)
    )
    assert run.returncode == 0
    assert "listen:" in run.stdout


@pytest.mark.parametrize("arguments", [["--print-config"], ["doctor"], ["--new-token=a:embed"]])
def test_a_signal_while_modules_are_imported_ends_other_commands_as_usual(
    arguments: list[str],
) -> None:
    run = signaled_while_importing(signal.SIGTERM, *arguments)
    assert (run.returncode, run.stdout) == (-signal.SIGTERM, "")


@pytest.mark.parametrize("nohup", [False, True])
def test_a_closed_terminal_ends_neither_the_drain_nor_calls(start: Start, nohup: bool) -> None:
    master, slave = pty.openpty()

    def in_terminal() -> None:
        os.login_tty(slave)  # a session of its own, with this terminal
        if nohup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    daemon = start(stdin=slave, stdout=slave, stderr=slave, preexec_fn=in_terminal)
    os.close(slave)
    printed = b""
    while b'"listening"' not in printed:
        printed += os.read(master, 4096)
    wait_for((daemon.data_dir / "address").exists)
    address = (daemon.data_dir / "address").read_text().strip()
    assert health(address) == health_pb2.HealthCheckResponse.SERVING
    os.close(master)  # The kernel sends SIGHUP to the daemon.
    if nohup:
        assert health(address) == health_pb2.HealthCheckResponse.SERVING
        daemon.popen.send_signal(signal.SIGTERM)
    assert daemon.popen.wait(timeout=60) == 0
    assert not (daemon.data_dir / "address").exists()


@pytest.mark.parametrize("signals", [1, 2])
def test_output_that_nobody_reads_any_more_does_not_change_the_exit_code(
    start: Start, signals: int
) -> None:
    read, write = os.pipe()
    keep = "--shutdown-keep-serving-seconds=600" if signals > 1 else "--log-level=info"
    daemon = start(keep, stdout=write, stderr=write)
    os.close(write)
    printed = b""
    while b'"listening"' not in printed:
        printed += os.read(read, 4096)
    os.close(read)
    wait_for((daemon.data_dir / "address").exists)
    address = (daemon.data_dir / "address").read_text().strip()
    daemon.popen.send_signal(signal.SIGTERM)
    if signals > 1:
        wait_for(lambda: health(address) == health_pb2.HealthCheckResponse.NOT_SERVING)
        daemon.popen.send_signal(signal.SIGTERM)
    assert daemon.popen.wait(timeout=60) == 0


def test_closed_standard_streams_are_opened_as_dev_null(tmp_path: Path) -> None:
    """Or the index of jobs is file 2, where native code prints its messages."""
    command = [sys.executable, "-m", "multigrain_server", "--data-dir", str(tmp_path / "data")]
    command += ["--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0"]
    daemon = subprocess.Popen(["sh", "-c", f"exec {shlex.join(command)} <&- >&- 2>&-"])
    try:
        wait_for((tmp_path / "data" / "address").exists)
        for number in range(3):
            assert os.readlink(f"/proc/{daemon.pid}/fd/{number}") == os.devnull
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(timeout=60) == 0
    finally:
        daemon.kill()
        daemon.wait()

"""The daemon as a process: fast start, one per data directory, graceful shutdown."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.server.process import DaemonProcess

pytestmark = pytest.mark.process


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    process = DaemonProcess(tmp_path / "data")
    yield process
    process.end()


def test_the_first_log_line_is_the_address(daemon: DaemonProcess) -> None:
    address = daemon.wait_ready()
    first = json.loads(daemon.log.read_text().splitlines()[0])
    assert (first["event"], first["address"]) == ("listening", address)
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=60)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_no_heavy_package_delays_the_start() -> None:
    """How long a start takes is measured by ``python -m benchmarks.control_plane``."""
    code = "import sys, multigrain_server.main; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "multigrain_server.app" in loaded
    heavy = {"PIL", "aiohttp", "cryptography", "jinja2", "matplotlib", "mindspore", "numpy"}
    heavy |= {"onnx", "onnxruntime", "opentelemetry", "openvino", "scipy", "sklearn", "torch"}
    assert heavy.isdisjoint(loaded)


def test_sigterm_shuts_down_gracefully(daemon: DaemonProcess) -> None:
    daemon.wait_ready()
    daemon.popen.send_signal(signal.SIGTERM)
    assert daemon.popen.wait(timeout=60) == 0
    assert not (daemon.data_dir / "address").exists()
    events = [json.loads(line)["event"] for line in daemon.log.read_text().splitlines()]
    assert events[-2:] == ["stopping", "stopped"]


def test_readiness_falls_before_calls_are_refused(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path / "data", ["--shutdown-keep-serving-seconds", "30"])
    try:
        with grpc.insecure_channel(daemon.wait_ready()) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            daemon.popen.send_signal(signal.SIGTERM)
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert stub.Check(health_pb2.HealthCheckRequest()).status
        # A second signal does not wait for the half minute.
        daemon.popen.send_signal(signal.SIGTERM)
        assert daemon.popen.wait(timeout=60) == 0
    finally:
        daemon.end()


def test_a_second_daemon_on_the_same_data_is_refused(daemon: DaemonProcess) -> None:
    daemon.wait_ready()
    second = DaemonProcess(daemon.data_dir)
    try:
        assert second.popen.wait(timeout=60) == 1
        assert f"another daemon (pid {daemon.popen.pid})" in second.log.read_text()
        assert (daemon.data_dir / "address").exists()
    finally:
        second.end()


def test_missing_devices_and_data_roots_are_logged_after_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # no driver's tool
    lost = tmp_path / "lost"
    flags = ("--data-root", str(lost), "--devices", "cpu:1,ascend:0-7")
    process = DaemonProcess(tmp_path / "data", flags)
    process.wait_ready()
    process.popen.send_signal(signal.SIGTERM)
    process.popen.wait(timeout=60)
    first, *others = [json.loads(line) for line in process.log.read_text().splitlines()]
    assert first["event"] == "listening"
    warnings = [line for line in others if line["level"] == "warning"]
    assert {line["event"] for line in warnings} == {"startup check"}
    assert [(line["check"], line["problem"]) for line in warnings] == [
        (f"data root {lost}", "not a folder"),
        ("devices: ascend", "8 configured, but npu-smi was not found"),
    ]


def test_port_in_use_is_a_one_line_error(daemon: DaemonProcess, tmp_path: Path) -> None:
    address = daemon.wait_ready()
    second = DaemonProcess(tmp_path / "other", ["--listen", address])
    try:
        assert second.popen.wait(timeout=60) == 1
        assert f"cannot listen on {address}" in second.log.read_text()
        assert "Traceback" not in second.log.read_text()
    finally:
        second.end()


def test_print_config_prints_yaml_and_exits() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "multigrain_server.main", "--print-config", "--devices=cpu:3"],
        capture_output=True,
        text=True,
        check=True,
    )
    body = yaml.safe_load(run.stdout)
    assert body["devices"] == "cpu:3"
    assert body["serving"]["max_images_per_request"] == 64


@pytest.mark.parametrize("command", ["--print-config", "--new-token=me:infer", "--help"])
@pytest.mark.parametrize(
    ("redirection", "code", "why"),
    [
        ("> /dev/full", 1, "No space left on device"),
        (">&-", 1, "it is closed"),
        ("| true", 141, ""),
        ("> /dev/null", 0, ""),
    ],
)
def test_a_result_that_cannot_be_printed_is_no_success(
    command: str, redirection: str, code: int, why: str
) -> None:
    program = shlex.join([sys.executable, "-m", "multigrain_server", command])
    # The pipe's reader has gone for sure before the program writes.
    text = f"(sleep 0.2; {program}; echo $? >&3) {redirection}"
    if "|" not in redirection:
        text = f"{program} {redirection}; echo $? >&3"
    run = subprocess.run(
        ["bash", "-c", f"exec 3>&1; {text}"], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) == code
    assert "Traceback" not in run.stderr
    assert "Exception ignored" not in run.stderr
    assert why in run.stderr
    assert ("token of me" in run.stderr) == (code == 0 and "token" in command)


def test_invalid_flag_exits_with_code_2_and_a_message() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "multigrain_server.main", "--devices", "gpu"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.startswith("multigrain-server: devices: ")
    assert "Traceback" not in run.stderr

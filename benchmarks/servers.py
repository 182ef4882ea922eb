"""The servers that are compared: multigrain, a plain gRPC server and PyTriton."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from multigrain_client import Client

_PEERS = Path(__file__).parent / "peers"
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        cold_seconds: from its start until it could answer.
        runtime: of the loaded model, as the daemon names it.
    """

    address: str
    process: psutil.Process
    cold_seconds: float
    protocol: str = "embed"
    runtime: str = ""

    @property
    def runtime_name(self) -> str:
        """The runtime without the reasons of its choice."""
        return self.runtime.partition(" (")[0]

    def cpu_seconds(self) -> float:
        """CPU seconds of the process tree so far."""
        return sum(sum(p.cpu_times()[:2]) for p in self._tree())

    def rss_mb(self) -> float:
        """Resident memory of the process tree."""
        return sum(p.memory_info().rss for p in self._tree()) / 1e6

    def parts(self) -> dict[str, float]:
        """CPU seconds of the server and of its child processes."""
        own = sum(self.process.cpu_times()[:2])
        return {"daemon": own, "engines": self.cpu_seconds() - own}

    def _tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


def write_calibrated(data_dir: Path) -> Path:
    """As :func:`write_resnet50`, of the network with an 8-bit graph."""
    models = data_dir / "models"
    command = [sys.executable, "-m", "benchmarks.calibrated", str(models)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return models / "calibrated" / "1"


def write_resnet50(data_dir: Path, version: int = 1) -> Path:
    """Writes the model of a daemon with this data directory, in a child process.

    MindSpore and gRPC cannot be loaded into one.
    """
    models = data_dir / "models"
    command = [sys.executable, "-m", "benchmarks.resnet50", str(models), "resnet50", str(version)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return models / "resnet50" / str(version)


@contextmanager
def multigrain(data_dir: Path, model: str, *options: str, runtime: str = "") -> Iterator[Server]:
    """A daemon with one model loaded."""
    log = data_dir / "bench.log"
    command = [sys.executable, "-m", "multigrain_server.main", "--data-dir", str(data_dir)]
    started = time.perf_counter()
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0", *options],
            stdout=out,
            stderr=out,
        )
    try:
        address = _wait_for(process, log, r"listening .*address=(\S+)")
        with Client(address) as client:
            loaded = client.load_model(model, runtime=runtime)
        seconds = time.perf_counter() - started
        yield Server(address, psutil.Process(process.pid), seconds, runtime=loaded.runtime)
    finally:
        _stop(process)


def plain_grpc(bundle: Path, scratch: Path) -> AbstractContextManager[Server]:
    """The server of ``peers.grpc_onnx``."""
    return _peer("grpc_onnx", scratch, str(bundle))


def empty_grpc(size: int, scratch: Path, port: int = 0) -> AbstractContextManager[Server]:
    """The server of ``peers.empty_grpc``; ``size`` numbers in an answer, ``port`` 0 = any."""
    return _peer("empty_grpc", scratch, str(size), str(port))


@contextmanager
def _peer(module: str, scratch: Path, *arguments: str) -> Iterator[Server]:
    log = scratch / f"{'-'.join((module, *arguments[1:]))}.log"
    started = time.perf_counter()
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.peers.{module}", *arguments],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        address = _wait_for(process, log, r"(127\.0\.0\.1:\d+)")
        yield Server(address, psutil.Process(process.pid), time.perf_counter() - started)
    finally:
        _stop(process)


@contextmanager
def pytriton(bundle: Path, scratch: Path, python: Path) -> Iterator[Server]:
    """The server of ``peers.triton_onnx``; ``python`` belongs to an environment with PyTriton."""
    log = scratch / "pytriton.log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.perf_counter()
    with log.open("w") as out:
        process = subprocess.Popen(
            [str(python), str(_PEERS / "triton_onnx.py"), str(bundle / "model.onnx"), str(port)],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_for(process, log, r"(?s)Read more about configuring and serving|(successfully)")
        seconds = time.perf_counter() - started
        yield Server(f"127.0.0.1:{port}", psutil.Process(process.pid), seconds, "triton")
    finally:
        _stop(process)


def _wait_for(process: subprocess.Popen[bytes], log: Path, pattern: str) -> str:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        text = log.read_text(errors="replace")
        if found := re.search(pattern, text):
            return found.group(1) or ""
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise RuntimeError(f"server did not start: {log.read_text(errors='replace')[-2000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

"""What callers without a token can do to a daemon that needs tokens.

Each attack runs for some seconds in a process of its own. Meanwhile, HTTP and gRPC health checks
are sent as a kubelet does, and a caller with a token lists jobs. Measured are the memory of the
daemon before, at its peak and some seconds afterwards, the health checks that failed, and the
latency and errors of the caller with the token.
"""

from __future__ import annotations

import http.client
import multiprocessing
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks import results
from multigrain.v1 import job_pb2, job_pb2_grpc
from multigrain_server.access.tokens import NewToken
from tests.raw_http2 import (
    PREFACE,
    Connection,
    headers,
    many_headers,
    repeated_headers,
    settings,
)

_MIB = 1 << 20
_CHECK = "/grpc.health.v1.Health/Check"
_WATCH = "/grpc.health.v1.Health/Watch"
_EMBED = "/multigrain.v1.EmbeddingService/Embed"
_EMBED_STREAM = "/multigrain.v1.EmbeddingService/EmbedStream"
_IMPORT = "/multigrain.v1.ModelService/ImportModel"
_PROBE_SECONDS = 0.25
_PROBE_TIMEOUT = 5.0
_CALL_SECONDS = 0.02
_SETTLE_SECONDS = 15.0
_HPACK_SECONDS = 0.008
COLUMNS = (
    *("memory before, MiB", "peak", "after", "probes lost", "caller p50, ms", "p99, ms", "errors"),
)


@dataclass(frozen=True)
class Daemon:
    """A running daemon, and a token that may list its jobs."""

    process: psutil.Process
    address: str
    http: str
    token: str

    def resident_mib(self) -> float:
        """Resident memory of the daemon itself."""
        return float(self.process.memory_info().rss) / _MIB


@contextmanager
def daemon(folder: Path) -> Iterator[Daemon]:
    """Starts a daemon with a token file."""
    made = NewToken.parse("reader:read,infer")
    tokens = folder / "tokens.yaml"
    tokens.write_text(f"{made.line}\n")
    log = folder / "daemon.log"
    command = [sys.executable, "-m", "multigrain_server.main", f"--data-dir={folder / 'data'}"]
    command += ["--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0", f"--access-tokens={tokens}"]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        end = time.monotonic() + 60
        while not (found := re.search(r"listening .*address=(\S+) http=(\S+)", log.read_text())):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the daemon did not start:\n{log.read_text()}")
            time.sleep(0.05)
        time.sleep(2)
        yield Daemon(psutil.Process(process.pid), found[1], found[2], made.token)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


#: Gets the gRPC address, the HTTP address and its duration.
Attack = Callable[[str, str, float], None]


def _unfinished(
    address: str,
    seconds: float,
    method: str,
    streams: int,
    size: int,
    metadata: Sequence[tuple[str, str]] = (),
) -> None:
    """Messages whose last byte never comes, eight on a connection."""
    end = time.monotonic() + seconds

    def send(connection: Connection, stream: int) -> None:
        connection.open(stream, method, metadata)
        connection.send_message(stream, size, missing=1, seconds=seconds)

    threads = []
    connections = [Connection(address) for _ in range(streams // 8)]
    for number in range(streams):
        arguments = (connections[number // 8], 1 + 2 * (number % 8))
        threads.append(threading.Thread(target=send, args=arguments, daemon=True))
        threads[-1].start()
    time.sleep(max(0.0, end - time.monotonic()))


def messages(address: str, _http: str, seconds: float) -> None:
    """64 unfinished messages of 64 MiB."""
    _unfinished(address, seconds, _EMBED, 64, 64 * _MIB)


def uploads(address: str, _http: str, seconds: float) -> None:
    """64 unfinished messages of 64 MiB in streams."""
    _unfinished(address, seconds, _IMPORT, 64, 64 * _MIB)


def health_messages(address: str, _http: str, seconds: float) -> None:
    """64 unfinished health checks of 64 MiB."""
    _unfinished(address, seconds, _CHECK, 64, 64 * _MIB)


def health_names(address: str, _http: str, seconds: float) -> None:
    """20 subscriptions to health, each with a name of 40 MiB, again and again."""
    end = time.monotonic() + seconds
    request = health_pb2.HealthCheckRequest(service="x" * (40 * _MIB))
    while time.monotonic() < end:
        with grpc.insecure_channel(address, [("grpc.max_send_message_length", -1)]) as channel:
            calls = [health_pb2_grpc.HealthStub(channel).Watch(request) for _ in range(20)]
            time.sleep(min(2.0, max(0.0, end - time.monotonic())))
            for call in calls:
                call.cancel()


def half_open_http(_address: str, http_address: str, seconds: float) -> None:
    """64 HTTP connections whose requests never end, replaced when they are closed."""
    host, _, port = http_address.rpartition(":")
    end = time.monotonic() + seconds
    opened: list[socket.socket] = []
    while time.monotonic() < end:
        while len(opened) < 64:
            with suppress(OSError):
                sock = socket.create_connection((host, int(port)), timeout=5)
                sock.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
                sock.setblocking(False)
                opened.append(sock)
        for sock in list(opened):
            try:
                gone = not sock.recv(1)
            except BlockingIOError:
                continue
            except OSError:
                gone = True
            if gone:
                sock.close()
                opened.remove(sock)
        time.sleep(0.01)


def half_open_grpc(address: str, _http: str, seconds: float) -> None:
    """3,000 gRPC connections that send nothing, or as many as there may be."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + seconds
    opened = []
    for _ in range(3000):
        with suppress(OSError):
            opened.append(socket.create_connection((host, int(port)), timeout=5))
        if time.monotonic() > end:
            return
    time.sleep(max(0.0, end - time.monotonic()))


def _send_headers(address: str, seconds: float, block: bytes, pause: float, keep: int) -> None:
    """Sends header blocks, each on a connection that acknowledges no settings.

    Args:
        address: of the daemon.
        seconds: how long.
        block: frames.
        pause: seconds between two connections.
        keep: connections that stay open.
    """
    host, _, port = address.rpartition(":")
    data = PREFACE + settings() + block
    end = time.monotonic() + seconds
    opened: list[socket.socket] = []
    while time.monotonic() < end:
        with suppress(OSError):
            sock = socket.create_connection((host, int(port)), timeout=5)
            opened.append(sock)
            sock.sendall(data)
        if len(opened) > keep:
            opened.pop(0).close()
        time.sleep(pause)


def header_blocks(address: str, _http: str, seconds: float) -> None:
    """125 connections per second with headers of 16 KiB that decode to 45 MiB."""
    block = headers(1, repeated_headers(_CHECK))
    _send_headers(address, seconds, block, _HPACK_SECONDS, 25)


def continuations(address: str, _http: str, seconds: float) -> None:
    """8 connections per second with 400,000 headers in 400 KB of CONTINUATION frames."""
    _send_headers(address, seconds, headers(1, many_headers(_CHECK, 400_000)), 0.125, 25)


def small_continuations(address: str, _http: str, seconds: float) -> None:
    """50 connections per second with 60,000 headers in 60 KB."""
    _send_headers(address, seconds, headers(1, many_headers(_CHECK, 60_000)), 0.02, 25)


def endless_headers(address: str, _http: str, seconds: float) -> None:
    """8 connections per second with 330,000 headers whose last frame never comes."""
    block = headers(1, many_headers(_CHECK, 330_000))[:-1]
    _send_headers(address, seconds, block, 0.125, 100)


def open_streams(address: str, token: str, seconds: float) -> None:
    """24 streams of a caller with a token, each with an unfinished message of 60 MiB."""
    metadata = [("authorization", f"Bearer {token}")]
    _unfinished(address, seconds, _EMBED_STREAM, 24, 60 * _MIB, metadata)


# Get the token in place of the HTTP address.
_WITH_TOKEN = {open_streams}

ATTACKS: dict[str, Attack | None] = {
    "none": None,
    "64 messages of 64 MiB": messages,
    "64 uploads of 64 MiB": uploads,
    "64 health checks of 64 MiB": health_messages,
    "20 health names of 40 MiB": health_names,
    "64 half-open HTTP": half_open_http,
    "3,000 half-open gRPC": half_open_grpc,
    "header blocks (HPACK)": header_blocks,
    "header blocks of 400 KB": continuations,
    "header blocks of 60 KB": small_continuations,
    "header blocks without an end": endless_headers,
    "with a token: 24 streams, messages of 60 MiB": open_streams,
}


@dataclass
class Watch:
    """What others saw during an attack."""

    daemon: Daemon
    probes: int = 0
    lost: int = 0
    errors: int = 0
    peak: float = 0.0
    latencies: list[float] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> list[threading.Thread]:
        """Starts the health checks, the caller and the watch of memory."""
        work = (self._probe_http, self._probe_grpc, self._call, self._watch_memory)
        threads = [threading.Thread(target=function) for function in work]
        for thread in threads:
            thread.start()
        return threads

    def _probe(self, probe: Callable[[], bool]) -> None:
        while not self.ended.wait(_PROBE_SECONDS):
            reason = "wrong answer"
            try:
                good = probe()
            except (OSError, http.client.HTTPException, grpc.RpcError) as error:
                good, reason = False, str(error)
            self.probes += 1
            if not good:
                self.lost += 1
                print(f"lost: {probe.__qualname__}: {reason}", file=sys.stderr)

    def _probe_http(self) -> None:
        def probe() -> bool:
            connection = http.client.HTTPConnection(self.daemon.http, timeout=_PROBE_TIMEOUT)
            connection.request("GET", "/healthz")
            status = connection.getresponse().status
            connection.close()
            return status == 200

        self._probe(probe)

    def _probe_grpc(self) -> None:
        def probe() -> bool:
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(self.daemon.address, options) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                request = health_pb2.HealthCheckRequest()
                return bool(stub.Check(request, timeout=_PROBE_TIMEOUT).status == 1)

        self._probe(probe)

    def _call(self) -> None:
        metadata = (("authorization", f"Bearer {self.daemon.token}"),)
        with grpc.insecure_channel(self.daemon.address) as channel:
            stub = job_pb2_grpc.JobServiceStub(channel)
            while not self.ended.wait(_CALL_SECONDS):
                began = time.perf_counter()
                try:
                    stub.ListJobs(job_pb2.ListJobsRequest(), metadata=metadata, timeout=30)
                except grpc.RpcError:
                    self.errors += 1
                self.latencies.append(time.perf_counter() - began)

    def _watch_memory(self) -> None:
        while not self.ended.wait(0.02):
            self.peak = max(self.peak, self.daemon.resident_mib())


def measure(served: Daemon, attack: Attack | None, seconds: float) -> tuple[results.Value, ...]:
    """Runs one attack; returns the cells of a row."""
    before = served.resident_mib()
    watch = Watch(served)
    threads = watch.run()
    if attack is None:
        time.sleep(seconds)
    else:
        second = served.token if attack in _WITH_TOKEN else served.http
        process = multiprocessing.get_context("spawn").Process(
            target=attack, args=(served.address, second, seconds), daemon=True
        )
        process.start()
        process.join(seconds + 20)
        process.kill()
        process.join()
    watch.ended.set()
    for thread in threads:
        thread.join()
    time.sleep(0.0 if attack is None else _SETTLE_SECONDS)
    latencies = sorted(watch.latencies) or [float("nan")]
    p50, p99 = (1000 * latencies[int(q * (len(latencies) - 1))] for q in (0.5, 0.99))
    return (
        round(before), round(watch.peak), round(served.resident_mib()),
        f"{watch.lost} of {watch.probes}", p50, p99, f"{watch.errors} of {len(watch.latencies)}",
    )  # fmt: skip


def main() -> int:
    parser = results.parser("unauthenticated")
    parser.add_argument("--seconds", type=float, default=8.0, help="duration of each attack")
    parser.add_argument("--only", default="", help="only attacks whose name contains this")
    options = parser.parse_args()
    report = results.Report("unauthenticated", options)
    table = report.table("", COLUMNS, first="attack")
    for name, attack in ATTACKS.items():
        if options.only in name:
            with tempfile.TemporaryDirectory() as folder, daemon(Path(folder)) as served:
                table.row(name, *measure(served, attack, options.seconds))
    report.note(
        f"Memory of the daemon before an attack, at its peak and {_SETTLE_SECONDS:.0f} s later. "
        "Probes are HTTP and gRPC health checks with a timeout of 5 s; the caller with a token "
        "lists jobs."
    )
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())

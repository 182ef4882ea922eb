"""An ordinary caller beside one that sends hostile images.

A daemon with a ResNet-50 of random weights serves callers with tokens. The ordinary one sends one
JPEG of 500 x 375 pixels at a time, first alone, then beside one hostile caller of each kind, which
has a few calls in flight and repeats them whatever is answered. A row for each kind: what the
hostile images were answered with, the ordinary caller's median and 99th percentile and its errors,
and the most memory of the engine and its decoder processes (proportional set size). One kind is not
hostile at all: it shows what any caller with many images costs the others. A row misses
its goal if the ordinary caller had an error, its p99 is above three times that alone, the memory
above one and a half times that alone, or the engine was restarted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import secrets
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import psutil

from benchmarks import results
from benchmarks.hostile_pictures import KINDS
from benchmarks.photographs import photographs
from benchmarks.servers import write_resnet50
from multigrain.v1.common_pb2 import ErrorKind
from multigrain.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from multigrain.v1.embedding_pb2_grpc import EmbeddingServiceStub
from multigrain_client import Client
from tests.e2e.daemon import Daemon

P99_FACTOR: Final = 3.0
MEMORY_FACTOR: Final = 1.5
COLUMNS: Final = (
    *("hostile images", "p50, ms", "p99, ms", "p99, x alone", "errors"),
    *("memory, MiB", "memory, x alone"),
)
_CALLS: Final = 4  # of a hostile caller at a time
_MIB: Final = 2**20
Call = Callable[[EmbedRequest, float], EmbedResponse]
_OPTIONS: Final = (("grpc.max_receive_message_length", 64 * _MIB),)


@dataclass
class Load:
    """What an ordinary caller saw.

    Attributes:
        milliseconds: of each answer.
        errors: names of failures -> their number.
        bytes: most memory of the engine and its decoder processes.
        pids: of the engines.
    """

    milliseconds: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    pids: frozenset[int] = frozenset()

    @property
    def p50(self) -> float:
        return statistics.median(self.milliseconds) if self.milliseconds else float("inf")

    @property
    def p99(self) -> float:
        ordered = sorted(self.milliseconds)
        return ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] if ordered else float("inf")


@contextmanager
def connected(address: str, token: str) -> Iterator[Call]:
    """A function that makes a call, over a connection of its own."""
    with grpc.insecure_channel(address, _OPTIONS) as channel:
        metadata = (("authorization", f"Bearer {token}"),)
        service = EmbeddingServiceStub(channel)
        yield lambda request, timeout: service.Embed(request, timeout, metadata)


def outcomes(call: Call, request: EmbedRequest, timeout: float) -> list[str]:
    """Makes a call, and names the outcome of each image."""
    try:
        response = call(request, timeout)
    except grpc.RpcError as error:
        return [error.code().name] * len(request.images)
    return [
        ErrorKind.Name(result.status.kind).removeprefix("ERROR_KIND_")
        if result.status.kind
        else "OK"
        for result in response.results
    ]


def attack(address: str, token: str, kind: str, seconds: float) -> None:
    """Sends images of a kind, and prints how many had which outcome."""
    make, count = KINDS[kind]
    request = EmbedRequest(images=[make()] * count)
    print("ready", flush=True)
    counted: Counter[str] = Counter()
    end = time.monotonic() + seconds

    def loop() -> None:
        with connected(address, token) as call:
            while time.monotonic() < end:
                found = outcomes(call, request, 10.0)
                counted.update(found)
                if found[0] == "RESOURCE_EXHAUSTED":
                    time.sleep(0.05)

    threads = [threading.Thread(target=loop) for _ in range(_CALLS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(counted), flush=True)


def engines(daemon: psutil.Process) -> list[psutil.Process]:
    """The engines' processes, without those that they started."""
    return [child for child in daemon.children() if "multigrain.engine" in " ".join(cmd(child))]


def cmd(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def memory(daemon: psutil.Process) -> int:
    """Bytes of all processes below the daemon; pages that they share count once."""
    total = 0
    for process in daemon.children(recursive=True):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it has ended
            continue
    return total


def ordinary(daemon: Daemon, token: str, image: bytes, seconds: float) -> Load:
    """Sends one image at a time, and looks at the engine meanwhile."""
    load = Load()
    process = psutil.Process(daemon.process.pid)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            load.bytes = max(load.bytes, memory(process))

    watcher = threading.Thread(target=watch)
    watcher.start()
    request = EmbedRequest(images=[image])
    end = time.monotonic() + seconds
    with connected(daemon.address, token) as call:
        while time.monotonic() < end:
            start = time.perf_counter()
            (outcome,) = outcomes(call, request, 30.0)
            if outcome == "OK":
                load.milliseconds.append(1000 * (time.perf_counter() - start))
            else:
                load.errors[outcome] += 1
            time.sleep(0.005)
    done.set()
    watcher.join()
    load.pids = frozenset(engine.pid for engine in engines(process))
    return load


def beside(
    daemon: Daemon, tokens: Mapping[str, str], kind: str, image: bytes, seconds: float
) -> tuple[Load, Counter[str]]:
    """The ordinary caller's load beside a hostile caller, and the outcomes of the latter."""
    arguments = ["--attack", daemon.address, tokens[kind], kind, "--seconds", str(seconds)]
    command = [sys.executable, "-m", "benchmarks.hostile_images", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as hostile:
        assert hostile.stdout is not None
        hostile.stdout.readline()  # the file is made
        load = ordinary(daemon, tokens["ordinary"], image, seconds)
        counted: Counter[str] = Counter(json.loads(hostile.stdout.readline() or "{}"))
    return load, counted


def write_tokens(path: Path, kinds: Sequence[str]) -> dict[str, str]:
    """Writes a token file; tokens of an ordinary and an admin caller, and of one of each kind.

    What a hostile caller has done must not count against the next.
    """
    roles = {"ordinary": "infer", "admin": "admin"} | dict.fromkeys(kinds, "infer")
    tokens = {name: secrets.token_urlsafe(32) for name in roles}
    entries: list[dict[str, Any]] = [
        {
            "name": re.sub(r"[^A-Za-z0-9]+", "-", name),
            "roles": [role],
            "sha256": hashlib.sha256(tokens[name].encode()).hexdigest(),
        }
        for name, role in roles.items()
    ]
    path.touch(mode=0o600)
    path.write_text(json.dumps(entries))
    return tokens


def run(report: results.Report, folder: Path, seconds: float, kinds: Sequence[str]) -> None:
    """Adds a row for each kind."""
    write_resnet50(folder / "data")
    tokens = write_tokens(folder / "tokens.yaml", kinds)
    image = photographs(1)[0]
    daemon = Daemon(folder, flags=[f"--access-tokens={folder / 'tokens.yaml'}"]).start()
    table = report.table("", COLUMNS, first="kind")
    try:
        with Client(daemon.address, token=tokens["admin"]) as client:
            client.load_model("resnet50@1", make_default=True)
        ordinary(daemon, tokens["ordinary"], image, 2.0)
        quiet = ordinary(daemon, tokens["ordinary"], image, seconds)
        table.row(
            "none: the caller alone", "", quiet.p50, quiet.p99, 1.0, quiet.errors.total(),
            round(quiet.bytes / _MIB), 1.0, reached=not quiet.errors,
        )  # fmt: skip
        for kind in kinds:
            load, counted = beside(daemon, tokens, kind, image, seconds)
            slower, larger = load.p99 / quiet.p99, load.bytes / quiet.bytes
            same = load.pids == quiet.pids
            table.row(
                kind if same else f"{kind} (the engine restarted)",
                ", ".join(f"{n} {name}" for name, n in counted.most_common()),
                load.p50, load.p99, slower, load.errors.total(), round(load.bytes / _MIB), larger,
                reached=slower <= P99_FACTOR and larger <= MEMORY_FACTOR and same
                and not load.errors,
            )  # fmt: skip
    finally:
        daemon.end()
    report.note(
        f"Goals: p99 at most {P99_FACTOR:g} times that alone, memory of the engine and its "
        f"decoder processes at most {MEMORY_FACTOR:g} times, no error of the ordinary caller, and "
        "no restart of the engine."
    )


def main() -> int:
    parser = results.parser("hostile_images")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each kind; default 10")
    parser.add_argument("--kinds", nargs="*", default=[], help="starts of names; default all")
    parser.add_argument("--attack", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attack:
        address, token, kind = options.attack
        attack(address, token, kind, options.seconds)
        return 0
    kinds = [kind for kind in KINDS if not options.kinds or kind.startswith(tuple(options.kinds))]
    report = results.Report("hostile_images", options)
    with results.data_folder(options) as folder:
        run(report, folder, options.seconds, kinds)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())

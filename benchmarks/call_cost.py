"""What a call costs: the daemon against an empty grpc.aio handler, with a fast network.

ResNet-18 at 32 px with random weights, and photographs of 1 kB: the network and the decoder take
less time than the calls. ``peers.empty_grpc`` answers with a constant of the same size. The limit
of unary calls in Python is what the cores can do if they compute the images and, for each, spend
the CPU time of the empty handler and of its callers.

``--profile FILE`` writes a flame graph of the daemon instead; it needs py-spy.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks import results
from benchmarks.callers import Counts, call
from benchmarks.machine_limit import Limits, Machine
from benchmarks.servers import Server, empty_grpc, multigrain
from benchmarks.serving import LIMIT
from multigrain.machine import available_cpus

NAME, TRUNK, SIZE, EMBEDDING = "resnet18", "resnet18", 32, 512
CALLERS = 64
CONNECTIONS = 8
EMPTY = "an empty grpc.aio handler"


def write_bundle(models_dir: Path) -> Path:
    """Runs in a child process: MindSpore and gRPC cannot be loaded into one."""
    arguments = [str(models_dir), NAME, "1", TRUNK, str(SIZE)]
    command = [sys.executable, "-m", "benchmarks.resnet50", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return models_dir / NAME / "1"


def many(server: Server, seconds: float) -> tuple[Counts, dict[str, float]]:
    """64 callers, and the CPU milliseconds per call of the server, its engines and the callers."""
    before = server.parts()
    counts = call(server.address, callers=CALLERS, seconds=seconds, small=True)
    each = 1000 / counts.answered_in_all
    used = {name: each * (now - before[name]) for name, now in server.parts().items()}
    return counts, {**used, "callers": 1000 * counts.cpu_seconds / counts.answered}


def measure(
    report: results.Report,
    daemon: Server,
    empty: Server,
    machine: Machine,
    options: argparse.Namespace,
) -> None:
    """Adds the comparisons of all rounds."""
    limits: list[Limits] = []
    counts: list[Counts] = []
    ones: list[Counts] = []
    empty_ones: list[Counts] = []
    streams: list[Counts] = []
    cpu: dict[str, list[float]] = {}
    unary: list[float] = []
    before = machine.measure()
    for _ in range(options.rounds):
        _, least = many(empty, options.seconds)
        found, used = many(daemon, options.seconds)
        counts.append(found)
        ones.append(call(daemon.address, callers=1, seconds=options.seconds / 2, small=True))
        empty_ones.append(call(empty.address, callers=1, seconds=options.seconds / 2, small=True))
        images = int(options.seconds * before.limit)
        own = daemon.parts()["daemon"]
        streams.append(call(daemon.address, stream=images, small=True))
        own = daemon.parts()["daemon"] - own
        cpu.setdefault("stream", []).append(1000 * own / streams[-1].answered_in_all)
        after = machine.measure()
        limits.append(before.between(after))
        before = after
        for name, ms in used.items():
            cpu.setdefault(name, []).append(ms)
        for name, ms in least.items():
            cpu.setdefault(f"{name} of the empty handler", []).append(ms)
        each = (least["daemon"] + least["callers"]) / 1000 / available_cpus()
        unary.append(1 / (1 / limits[-1].limit + each))
    report.compare(
        "daemon, CPU time per call", cpu["daemon"], unit="ms",
        over=cpu["daemon of the empty handler"], reference=EMPTY, at_most=1.5,
    )  # fmt: skip
    report.compare(
        "64 callers", [one.rate for one in counts], unit="calls/s",
        over=unary, reference=f"network, decoder, {EMPTY} and its callers", at_least=0.9,
    )  # fmt: skip
    report.compare(
        "EmbedStream", [one.rate for one in streams], unit="images/s",
        over=[limit.limit for limit in limits], reference=LIMIT, at_least=0.85,
    )  # fmt: skip
    alone = zip(ones, limits, strict=True)
    report.compare(
        "one caller, what the server adds", [one.p50_ms - limit.alone_ms for one, limit in alone],
        unit="ms", over=[one.p50_ms for one in empty_ones],
        reference=f"one caller of {EMPTY}",
    )  # fmt: skip
    for stage, milliseconds in ones[-1].stages_ms.items():
        report.compare(f"one caller: {stage}", milliseconds, unit="ms")
    shares = [ms * one.rate / 1000 for ms, one in zip(cpu["daemon"], counts, strict=True)]
    report.compare("daemon's share of a core, 64 callers", shares)
    report.compare(
        "daemon, CPU time per image of EmbedStream", cpu["stream"], unit="ms",
        over=cpu["daemon"], reference="a call with one image",
    )  # fmt: skip
    report.compare("engine and decoders, CPU time per call", cpu["engines"], unit="ms")
    report.compare(
        "callers, CPU time per call", cpu["callers"], unit="ms",
        over=cpu["callers of the empty handler"], reference=f"callers of {EMPTY}",
    )  # fmt: skip
    report.note(f"Runtime {daemon.runtime_name}, ResNet-18 at 32 px, files of 1 kB.")


def two_processes(report: results.Report, empty: Server, scratch: Path, seconds: float) -> None:
    """What a second process on the port would give: an upper bound, with empty handlers."""

    def rate(server: Server) -> float:
        return call(
            server.address, callers=CALLERS, seconds=seconds, small=True, connections=CONNECTIONS
        ).rate

    port = int(empty.address.rpartition(":")[2])
    one = rate(empty)
    with empty_grpc(EMBEDDING, scratch, port):
        two = rate(empty)
    report.compare(
        "two empty handlers on one port, 64 callers", two, unit="calls/s",
        over=one, reference=f"{EMPTY}, {CONNECTIONS} connections",
    )  # fmt: skip


def profile(server: Server, seconds: float, path: Path) -> None:
    """Writes a flame graph of the daemon's Python code while 64 callers use it."""
    plan = {"callers": CALLERS, "seconds": 3 * seconds, "small": True}
    callers = threading.Thread(target=call, args=(server.address,), kwargs=plan)
    idle = server.parts()["daemon"]
    callers.start()
    while server.parts()["daemon"] < idle + 0.5:  # its process imports what it needs first
        time.sleep(0.05)
    kind = "flamegraph" if path.suffix == ".svg" else "raw"
    # Only what holds the interpreter's lock. The daemon is stopped for each sample: of a stack that
    # changes meanwhile only the outer part would be seen, and gRPC would look expensive.
    options = ["--gil", "--rate", "200", "--duration", str(int(seconds))]
    record = ["py-spy", "record", *options, "--format", kind, "--output", str(path)]
    subprocess.run([*record, "--pid", str(server.process.pid)], check=True)
    callers.join()


def main() -> int:
    parser = results.parser("call_cost")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--data", type=Path, help="folder to keep the model in between runs")
    parser.add_argument("--daemon", default="", help="options of the daemon")
    parser.add_argument(
        "--profile", type=Path, help="write a flame graph (.svg), or stacks as text"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        data = options.data or Path(folder)
        bundle = write_bundle(data / "models")
        if options.profile is not None:
            daemon = stack.enter_context(multigrain(data, f"{NAME}@1", *options.daemon.split()))
            profile(daemon, options.seconds, options.profile)
            return 0
        report = results.Report("call_cost", options)
        machine = stack.enter_context(Machine(bundle, "", small=True))
        daemon = stack.enter_context(multigrain(data, f"{NAME}@1", *options.daemon.split()))
        empty = stack.enter_context(empty_grpc(EMBEDDING, data))
        measure(report, daemon, empty, machine, options)
        two_processes(report, empty, data, options.seconds)
        return report.finish()


if __name__ == "__main__":
    sys.exit(main())

"""What a call costs: the daemon against an empty grpc.aio handler, with a fast network.

``python -m benchmarks.call_cost [--rounds N] [--seconds S] [--daemon "OPTIONS"]``. ResNet-18 at
32 px with random weights and photographs of 1 kB: the network and the decoder take less time than
the calls. In one run, alternately:

* 64 callers with one image a call, of the daemon and of ``benchmarks.peers.empty_grpc``, whose
  handler returns a constant answer of the same size: rates, and CPU time per call of each process;
* one caller of both;
* EmbedStream of the client;
* the engine and the decoder alone (``benchmarks.machine_limit``).

The limit of unary calls in Python is what remains of the cores for a call: the time of the engine
and the decoder alone, and the CPU time of the empty handler and its callers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.callers import Report
from benchmarks.machine_limit import Machine
from benchmarks.servers import Server, empty_grpc, multigrain
from benchmarks.serving import call, row

_NAME, _TRUNK, _SIZE, _EMBEDDING = "resnet18", "resnet18", 32, 512
_CALLERS = 64


def write_bundle(models_dir: Path) -> Path:
    """Runs in a child process: MindSpore and gRPC cannot be loaded into one."""
    arguments = [str(models_dir), _NAME, "1", _TRUNK, str(_SIZE)]
    command = [sys.executable, "-m", "benchmarks.resnet50", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return models_dir / _NAME / "1"


def many(server: Server, seconds: float) -> tuple[Report, dict[str, float]]:
    """64 callers, and the CPU milliseconds per call of each part."""
    before = server.parts()
    report = call(server, callers=_CALLERS, seconds=seconds, small=True)
    calls = report.answered + 8  # those before the first that is timed
    used = {name: 1000 * (now - before[name]) / calls for name, now in server.parts().items()}
    return report, {**used, "callers": 1000 * report.cpu_seconds / report.answered}


def profile(server: Server, seconds: float, path: Path) -> None:
    """Writes a flame graph of the daemon's Python code while 64 callers use it. Needs py-spy."""
    plan = {"callers": _CALLERS, "seconds": 3 * seconds, "small": True}
    callers = threading.Thread(target=call, args=(server,), kwargs=plan)
    idle = server.parts()["daemon"]
    callers.start()
    while server.parts()["daemon"] < idle + 0.5:  # its process imports what it needs first
        time.sleep(0.05)
    kind = "flamegraph" if path.suffix == ".svg" else "raw"
    # Only what holds the interpreter's lock; without stopping the daemon for each sample.
    options = ["--gil", "--nonblocking", "--rate", "200", "--duration", str(int(seconds))]
    record = ["py-spy", "record", *options, "--format", kind, "--output", str(path)]
    subprocess.run([*record, "--pid", str(server.process.pid)], check=True)
    callers.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--daemon", default="", help="options of the daemon")
    parser.add_argument("--profile", type=Path, help="write a flame graph instead (.svg), or text")
    options = parser.parse_args()
    data = options.out / "call-cost"
    bundle = write_bundle(data / "models")
    rounds: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        rounds.setdefault(name, []).append(value)

    cores = os.cpu_count() or 1
    if options.profile is not None:
        with multigrain(data, f"{_NAME}@1", *options.daemon.split()) as daemon:
            profile(daemon, options.seconds, options.profile)
        return
    with ExitStack() as stack:
        machine = stack.enter_context(Machine(bundle, "", small=True))
        daemon = stack.enter_context(multigrain(data, f"{_NAME}@1", *options.daemon.split()))
        empty = stack.enter_context(empty_grpc(_EMBEDDING, options.out))
        for server in (daemon, empty):
            call(server, callers=_CALLERS, seconds=1, small=True)
        for _ in range(options.rounds):
            before = machine.measure()
            least, least_cpu = many(empty, options.seconds)
            report, cpu = many(daemon, options.seconds)
            stream = call(daemon, stream=int(500 * options.seconds), small=True)
            one = call(daemon, callers=1, seconds=options.seconds / 2, small=True)
            one_empty = call(empty, callers=1, seconds=options.seconds / 2, small=True)
            alone = before.between(machine.measure())
            own = least_cpu["daemon"] + least_cpu["callers"]
            limit = 1 / (1 / alone.limit + own / 1000 / cores)
            add("engine and decoder alone, images/s", alone.limit)
            add("empty handler: calls/s", least.rate)
            add("empty handler: CPU ms per call", least_cpu["daemon"])
            add("its callers: CPU ms per call", least_cpu["callers"])
            add("daemon: CPU ms per call", cpu["daemon"])
            add("engine and decoders: CPU ms per call", cpu["engines"])
            add("callers: CPU ms per call", cpu["callers"])
            add("daemon / empty handler, CPU", cpu["daemon"] / least_cpu["daemon"])
            add("limit of unary calls, calls/s", limit)
            add("64 callers, calls/s", report.rate)
            add("64 callers / limit", report.rate / limit)
            add("EmbedStream, images/s", stream.rate)
            add("EmbedStream / engine and decoder alone", stream.rate / alone.limit)
            add("one caller, p50 ms", one.p50_ms)
            add("one caller of the empty handler, p50 ms", one_empty.p50_ms)
            add("one image alone, ms", alone.alone_ms)
            add("one caller - one image alone, ms", one.p50_ms - alone.alone_ms)
            for stage, ms in one.stages_ms.items():
                add(f"one caller, p50 ms, {stage}", ms)
    row("what", "median", "of")
    for name, values in rounds.items():
        row(name, statistics.median(values), *values)
    (options.out / "call-cost.json").write_text(json.dumps(rounds, indent=2))


if __name__ == "__main__":
    main()

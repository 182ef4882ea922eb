"""Serving throughput and latency compared with the machine's limit and with two other servers.

``python -m benchmarks.serving [PART ...]``; without a part, all of them in one run. Parts:
callers, overload, stream, swaps, plain_grpc, pytriton (needs an environment of its own: ``make
peers-serving``). ResNet-50 with GeM at 224 px, random weights, 64 photographs; callers and servers
share the machine. The limit (``benchmarks.machine_limit``) is measured before and after each
result that is compared with it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.callers import Plan, Report
from benchmarks.machine_limit import Limits, Machine
from benchmarks.servers import Server, multigrain, plain_grpc, pytriton
from benchmarks.swaps import swap_under_load
from multigrain_client import Client

PARTS = ("callers", "stream", "overload", "swaps", "plain_grpc", "pytriton")


@dataclass(frozen=True)
class Options:
    """Options of the command line."""

    out: Path
    runtime: str
    rounds: int
    seconds: float
    overload_seconds: float
    stream_images: int
    requests: int
    swap_every: int
    pytriton: Path | None
    daemon: str


def call(server: Server, **fields: object) -> Report:
    """Runs callers in a process of their own."""
    plan = Plan(server.address, **{"protocol": server.protocol, **fields})  # type: ignore[arg-type]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.callers", json.dumps(asdict(plan))],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return Report(**json.loads(done.stdout))


def write_bundle(models_dir: Path, version: int = 1) -> Path:
    """Runs in a child process: MindSpore and gRPC cannot be loaded into one."""
    command = [sys.executable, "-m", "benchmarks.resnet50", str(models_dir), "resnet50"]
    subprocess.run([*command, str(version)], check=True, stdout=subprocess.DEVNULL)
    return models_dir / "resnet50" / str(version)


def row(name: str, *cells: object) -> None:
    shown = [f"{cell:.3g}" if isinstance(cell, float) and cell < 100 else cell for cell in cells]
    text = [f"{cell:.0f}" if isinstance(cell, float) else str(cell) for cell in shown]
    print(f"| {' | '.join([name, *text])} |", flush=True)


def each(name: str, values: list[float]) -> None:
    """Prints the median of the rounds and each round."""
    row(name, statistics.median(values), "of", *values)


def measured(name: str, server: Server, machine: Machine, options: Options) -> float:
    """Measures one server and returns its images per second with 16 callers."""
    limits: list[Limits] = []
    sixteens, ones, manys = [], [], []
    for _ in range(options.rounds):
        before, parts = machine.measure(), server.parts()
        sixteens.append(call(server, callers=16, seconds=options.seconds))
        took = {part: used - parts[part] for part, used in server.parts().items()}
        between = machine.measure()
        ones.append(call(server, callers=1, seconds=options.seconds / 2))
        after = machine.measure()
        manys.append(call(server, callers=256, seconds=options.seconds, deadline=2.0))
        limits += [before.between(between), between.between(after)]
    row("server", name, server.runtime)
    each("preprocessing one image on one core, ms", [limit.prepare_ms for limit in limits])
    each("engine on all cores, images/s", [limit.engine for limit in limits])
    each("limit, images/s", [limit.limit for limit in limits])
    each("16 callers, images/s", [report.rate for report in sixteens])
    against = zip(sixteens, limits[::2], strict=True)
    each("16 callers / limit", [report.rate / limit.limit for report, limit in against])
    each("single image, ms", [limit.alone_ms for limit in limits])
    each("1 caller, p50 ms", [report.p50_ms for report in ones])
    alone = zip(ones, limits[1::2], strict=True)
    each(
        "1 caller, p50 - single image, ms",
        [report.p50_ms - limit.alone_ms for report, limit in alone],
    )
    for stage, ms in ones[-1].stages_ms.items():
        row("1 caller, p50 ms", stage, ms)
    pairs = zip(manys, sixteens, strict=True)
    each("256 callers, answers in time/s", [report.rate for report in manys])
    each("256 callers / 16 callers", [many.rate / report.rate for many, report in pairs])
    each("256 callers, p99 ms", [report.p99_ms for report in manys])
    for report in manys:
        row("256 callers, codes", json.dumps(report.codes), "with a delay", report.retry_delays)
    row("cold start s", server.cold_seconds, "RSS MB", server.rss_mb())
    for part, seconds in took.items():
        row(f"CPU ms per image, {part}", 1000 * seconds / sixteens[-1].answered)
    row("CPU ms per image, callers", 1000 * sixteens[-1].cpu_seconds / sixteens[-1].answered)
    return statistics.median(report.rate for report in sixteens)


def overload(server: Server, options: Options) -> None:
    """Five times the normal rate for some time, then normal load again."""
    normal = call(server, callers=16, seconds=options.seconds)
    before, cpu = server.rss_mb(), server.parts()
    five = call(server, rate=5 * normal.rate, seconds=options.overload_seconds, deadline=2.0)
    took = {part: used - cpu[part] for part, used in server.parts().items()}
    after = call(server, callers=16, seconds=options.seconds)
    row("5 x overload", "good/s", five.rate, "of normal", five.rate / normal.rate)
    row("p99 of accepted calls, ms", five.p99_ms, json.dumps(five.codes), five.retry_delays)
    row("cores used by callers", five.cpu_seconds / five.seconds)
    row("cores used by the daemon, including refusals", took["daemon"] / five.seconds)
    row("answers per second afterwards", *after.by_second[:5], "normal", normal.rate)
    row("RSS MB before, after", before, server.rss_mb())


def stream(server: Server, machine: Machine, options: Options) -> None:
    """Bulk embedding by one client."""
    memory = server.rss_mb()
    shares = []
    for _ in range(options.rounds):
        before = machine.measure()
        report = call(server, stream=options.stream_images // options.rounds)
        limit = before.between(machine.measure()).limit
        shares.append(report.rate / limit)
        row("EmbedStream images/s", report.rate, "limit", limit, "images", report.answered)
        row("client RSS MB", *report.rss_mb[:: max(1, len(report.rss_mb) // 6)])
    each("EmbedStream / limit", shares)
    row("server RSS MB before, after", memory, server.rss_mb())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--runtime", default="", help="runtime of LoadModel; default auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--overload-seconds", type=float, default=60.0)
    parser.add_argument("--stream-images", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--swap-every", type=int, default=2000)
    parser.add_argument(
        "--daemon", default="", help='options of the daemon, such as "--serving-decode-threads 1"'
    )
    parser.add_argument("--long", action="store_true", help="100,000 requests in the part swaps")
    parser.add_argument("--pytriton", type=Path, help="interpreter of an environment with PyTriton")
    given = vars(parser.parse_args())
    parts: Iterable[str] = given.pop("parts") or PARTS
    if given.pop("long"):
        given["requests"] = 100_000
    run(set(parts), Options(**given))


def run(parts: set[str], options: Options) -> None:
    data = options.out / "data"
    bundle = write_bundle(data / "models")
    daemon = options.daemon.split()
    rate = 0.0
    with Machine(bundle, options.runtime) as machine:
        if {"callers", "overload", "stream"} & parts:
            with multigrain(data, "resnet50@1", *daemon, runtime=options.runtime) as server:
                if "callers" in parts:
                    rate = measured("multigrain", server, machine, options)
                if "stream" in parts:
                    stream(server, machine, options)
                if "overload" in parts:
                    overload(server, options)
        if "plain_grpc" in parts:
            with plain_grpc(bundle, options.out) as server:
                peer = measured("plain grpc.aio, onnxruntime f32", server, machine, options)
                if rate:
                    row("multigrain / plain grpc.aio", rate / peer)
        if "pytriton" in parts and options.pytriton is not None:
            with pytriton(bundle, options.out, options.pytriton) as server:
                peer = measured("PyTriton, onnxruntime f32", server, machine, options)
                if rate:
                    row("multigrain / PyTriton", rate / peer)
    if "swaps" in parts:
        write_bundle(data / "models", version=2)
        with multigrain(data, "resnet50@1", *daemon, runtime=options.runtime) as server:
            with Client(server.address) as client:
                client.load_model("resnet50@1", make_default=True)
            swaps = asyncio.run(swap_under_load(server, options.requests, options.swap_every))
            swaps.report(row)


if __name__ == "__main__":
    main()

"""Serving at the machine's limit: ours beside two servers that one would take instead.

``python -m benchmarks.serving [PART ...]``; without a part, all of them in one run. Parts:
callers, overload, stream, swaps, by_hand, pytriton (in an environment of its own: make
peers-serving). ResNet-50 with GeM at 224 px, random weights, 64 photographs; callers and servers
share the machine. The limit is measured before and after each figure that is compared with it, by
turns (``benchmarks.raw``).
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
from benchmarks.raw import Machine, Raw
from benchmarks.servers import Server, by_hand, ours, pytriton
from benchmarks.swaps import swap_under_load
from multigrain_client import Client

PARTS = ("callers", "stream", "overload", "swaps", "by_hand", "pytriton")


@dataclass(frozen=True)
class Options:
    """How much of each part."""

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
    """In a process of its own: MindSpore cannot be loaded beside gRPC's messages."""
    command = [sys.executable, "-m", "benchmarks.resnet50", str(models_dir), "resnet50"]
    subprocess.run([*command, str(version)], check=True, stdout=subprocess.DEVNULL)
    return models_dir / "resnet50" / str(version)


def row(name: str, *cells: object) -> None:
    shown = [f"{cell:.3g}" if isinstance(cell, float) and cell < 100 else cell for cell in cells]
    text = [f"{cell:.0f}" if isinstance(cell, float) else str(cell) for cell in shown]
    print(f"| {' | '.join([name, *text])} |", flush=True)


def each(name: str, found: list[float]) -> None:
    """What the rounds gave, and their median."""
    row(name, statistics.median(found), "of", *found)


def measured(name: str, server: Server, machine: Machine, options: Options) -> float:
    """What is measured of every server; the rate with 16 callers."""
    limits: list[Raw] = []
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
    each("preparing an image on one core, ms", [found.prepare_ms for found in limits])
    each("engine on all cores, images/s", [found.engine for found in limits])
    each("limit, images/s", [found.limit for found in limits])
    each("16 callers, images/s", [report.rate for report in sixteens])
    against = zip(sixteens, limits[::2], strict=True)
    each("16 callers, over the limit", [report.rate / found.limit for report, found in against])
    each("one image alone, ms", [found.alone_ms for found in limits])
    each("1 caller, p50 ms", [report.p50_ms for report in ones])
    alone = zip(ones, limits[1::2], strict=True)
    each(
        "1 caller, p50 over alone, ms", [report.p50_ms - found.alone_ms for report, found in alone]
    )
    for stage, ms in ones[-1].stages_ms.items():
        row("1 caller, p50 ms", stage, ms)
    pairs = zip(manys, sixteens, strict=True)
    each("256 callers, in time/s", [report.rate for report in manys])
    each("256 callers, over 16 callers", [many.rate / report.rate for many, report in pairs])
    each("256 callers, p99 ms", [report.p99_ms for report in manys])
    for report in manys:
        row("codes of the 256", json.dumps(report.codes), "with a delay", report.told_to_wait)
    row("cold start s", server.cold_seconds, "RSS MB", server.rss_mb())
    for part, seconds in took.items():
        row(f"CPU ms an image, {part}", 1000 * seconds / sixteens[-1].answered)
    row("CPU ms an image, callers", 1000 * sixteens[-1].cpu_seconds / sixteens[-1].answered)
    return statistics.median(report.rate for report in sixteens)


def overload(server: Server, options: Options) -> None:
    """Five times what it can, for a while; then normal load again."""
    normal = call(server, callers=16, seconds=options.seconds)
    before, cpu = server.rss_mb(), server.parts()
    five = call(server, rate=5 * normal.rate, seconds=options.overload_seconds, deadline=2.0)
    took = {part: used - cpu[part] for part, used in server.parts().items()}
    after = call(server, callers=16, seconds=options.seconds)
    row("5 x overload", "good/s", five.rate, "of normal", five.rate / normal.rate)
    row("p99 of the accepted ms", five.p99_ms, json.dumps(five.codes), five.told_to_wait)
    row("cores that callers took", five.cpu_seconds / five.seconds)
    row("cores that the daemon took, refusals and all", took["daemon"] / five.seconds)
    row("afterwards by second", *after.by_second[:5], "normal", normal.rate)
    row("RSS MB before, after", before, server.rss_mb())


def stream(server: Server, machine: Machine, options: Options) -> None:
    """One client's bulk embedding."""
    memory = server.rss_mb()
    shares = []
    for _ in range(options.rounds):
        before = machine.measure()
        report = call(server, stream=options.stream_images // options.rounds)
        limit = before.between(machine.measure()).limit
        shares.append(report.rate / limit)
        row("EmbedStream images/s", report.rate, "limit", limit, "images", report.answered)
        row("client RSS MB", *report.rss_mb[:: max(1, len(report.rss_mb) // 6)])
    each("EmbedStream, over the limit", shares)
    row("server RSS MB before, after", memory, server.rss_mb())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--runtime", default="", help="of LoadModel; default auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--overload-seconds", type=float, default=60.0)
    parser.add_argument("--stream-images", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--swap-every", type=int, default=2000)
    parser.add_argument("--daemon", default="", help='flags of ours: "--serving-decode-threads 1"')
    parser.add_argument("--long", action="store_true", help="100,000 requests of swaps")
    parser.add_argument("--pytriton", type=Path, help="python of an environment that has it")
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
            with ours(data, "resnet50@1", *daemon, runtime=options.runtime) as server:
                if "callers" in parts:
                    rate = measured("multigrain", server, machine, options)
                if "stream" in parts:
                    stream(server, machine, options)
                if "overload" in parts:
                    overload(server, options)
        if "by_hand" in parts:
            with by_hand(bundle, options.out) as server:
                peer = measured("grpc.aio by hand, onnxruntime f32", server, machine, options)
                if rate:
                    row("ours / by hand", rate / peer)
        if "pytriton" in parts and options.pytriton is not None:
            with pytriton(bundle, options.out, options.pytriton) as server:
                peer = measured("PyTriton, onnxruntime f32", server, machine, options)
                if rate:
                    row("ours / PyTriton", rate / peer)
    if "swaps" in parts:
        write_bundle(data / "models", version=2)
        with ours(data, "resnet50@1", *daemon, runtime=options.runtime) as server:
            with Client(server.address) as client:
                client.load_model("resnet50@1", make_default=True)
            found = asyncio.run(swap_under_load(server, options.requests, options.swap_every))
            found.report(row)


if __name__ == "__main__":
    main()

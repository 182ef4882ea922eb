"""Serving at the machine's limit: ours beside two servers that one would take instead.

``python -m tests.bench.serving [PART ...]``; without a part, all of them in one run. Parts:
limit, callers, overload, stream, swaps, by_hand, pytriton (in an environment of its own: make
peers-serving). ResNet-50 with GeM at 224 px, random
weights, 64 photographs; callers and servers share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from multigrain_client import Client
from tests.bench.callers import Plan, Report
from tests.bench.photographs import photographs
from tests.bench.raw import Raw
from tests.bench.servers import Server, by_hand, ours, pytriton

PARTS = ("limit", "callers", "overload", "stream", "swaps", "by_hand", "pytriton")


@dataclass(frozen=True)
class Options:
    """How much of each part."""

    out: Path
    runtime: str
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
        [sys.executable, "-m", "tests.bench.callers", json.dumps(asdict(plan))],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return Report(**json.loads(done.stdout))


def write_bundle(models_dir: Path, version: int = 1) -> Path:
    """In a process of its own: MindSpore cannot be loaded beside gRPC's messages."""
    command = [sys.executable, "-m", "tests.bench.resnet50", str(models_dir), "resnet50"]
    subprocess.run([*command, str(version)], check=True, stdout=subprocess.DEVNULL)
    return models_dir / "resnet50" / str(version)


def row(name: str, *cells: object) -> None:
    shown = [f"{cell:.3g}" if isinstance(cell, float) and cell < 100 else cell for cell in cells]
    text = [f"{cell:.0f}" if isinstance(cell, float) else str(cell) for cell in shown]
    print(f"| {' | '.join([name, *text])} |", flush=True)


def raw(bundle: Path, options: Options) -> Raw:
    """The machine's limit, found in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.raw", str(bundle), options.runtime or "auto"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found = Raw(**json.loads(done.stdout))
    row("raw", found.runtime)
    row("preprocessing ms on one core", found.prepare_ms)
    row("engine images/s on all cores", found.engine)
    row("limit images/s", found.limit, "one image alone ms", found.alone_ms)
    return found


def common(name: str, server: Server, options: Options) -> float:
    """What is measured of every server; the rate with 16 callers."""
    before = server.parts()
    sixteen = call(server, callers=16, seconds=options.seconds)
    after = server.parts()
    one = call(server, callers=1, seconds=options.seconds / 2)
    many = call(server, callers=256, seconds=options.seconds, deadline=2.0)
    row("server", "16 callers/s", "p50 ms", "p99", "1 caller p50", "p99", "256: good/s", "p99")
    row(
        name,
        *(sixteen.rate, sixteen.p50_ms, sixteen.p99_ms, one.p50_ms, one.p99_ms),
        *(many.rate, many.p99_ms),
    )
    row("codes of the 256", json.dumps(many.codes), "with a delay", many.told_to_wait)
    for stage, ms in one.stages_ms.items():
        row("1 caller, p50 ms", stage, ms)
    row("cold start s", server.cold_seconds, "RSS MB", server.rss_mb())
    for part, seconds in after.items():
        row(f"CPU ms an image, {part}", 1000 * (seconds - before[part]) / sixteen.answered)
    row("CPU ms an image, callers", 1000 * sixteen.cpu_seconds / sixteen.answered)
    return sixteen.rate


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


def stream(server: Server, options: Options) -> float:
    """One client's EmbedStream; images a second."""
    before = server.rss_mb()
    report = call(server, stream=options.stream_images, callers=64, deadline=0)
    row("EmbedStream images/s", report.rate, "images", report.answered)
    row("client RSS MB", *report.rss_mb[:: max(1, len(report.rss_mb) // 6)])
    row("server RSS MB before, after", before, server.rss_mb())
    return report.rate


def swaps(server: Server, options: Options) -> None:
    """Model swaps under load: every so many requests the other version is loaded."""
    seen: list[tuple[float, float, bool]] = []
    errors: list[str] = []
    rss: list[float] = []

    async def load() -> None:
        from multigrain_client import AsyncClient

        pictures = photographs()
        swapping = False
        async with AsyncClient(server.address) as client:

            async def caller(first: int) -> None:
                for number in range(first, options.requests, 8):
                    began = time.perf_counter()
                    try:
                        await client.embed(pictures[number % len(pictures)])
                    except Exception as error:  # counted, whatever it is
                        errors.append(repr(error)[:200])
                    seen.append((began, time.perf_counter() - began, swapping))

            async def swap() -> None:
                nonlocal swapping
                version = 2
                while len(seen) < options.requests:
                    await asyncio.sleep(0.05)
                    if len(seen) < (len(rss) + 1) * options.swap_every:
                        continue
                    swapping = True
                    await client.load_model(f"resnet50@{version}", make_default=True)
                    await client.unload_model(f"resnet50@{3 - version}")
                    swapping = False
                    version = 3 - version
                    while len(server.process.children(recursive=True)) > 1:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)  # nothing tells of another process's end
                    rss.append(server.rss_mb())

            task = asyncio.create_task(swap())
            await asyncio.gather(*(caller(number) for number in range(8)))
            task.cancel()

    asyncio.run(load())
    p99s = []
    for name, during in (("calm", False), ("during a swap", True)):
        times = sorted(seconds for _, seconds, swapping in seen if swapping is during) or [0.0]
        p99s.append(1000 * times[int(0.99 * len(times))])
        row(f"p99 ms {name}", p99s[-1], "calls", len(times))
    row("p99 during a swap over else", p99s[1] / (p99s[0] or 1))
    row("errors", len(errors), *errors[:3])
    row("swaps", len(rss), "server RSS MB after each", *(round(value) for value in rss))
    if len(rss) > 2:
        # The first swaps fill what is kept for good.
        later = rss[len(rss) // 4 :]
        slope = float(np.polyfit(range(len(later)), later, 1)[0])
        row("server RSS MB a swap, fitted to the last three quarters", slope)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--runtime", default="", help="of LoadModel; default auto")
    parser.add_argument("--seconds", type=float, default=10.0)
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
    options = Options(**given)
    data = options.out / "data"
    bundle = write_bundle(data / "models")
    limit = rate = 0.0
    if "limit" in parts:
        limit = raw(bundle, options).limit
    if {"callers", "overload", "stream"} & set(parts):
        with ours(data, "resnet50@1", *options.daemon.split(), runtime=options.runtime) as server:
            if "callers" in parts:
                rate = common("multigrain", server, options)
            if "stream" in parts:
                streamed = stream(server, options)
                if limit:
                    row("EmbedStream / limit", streamed / limit)
            if "overload" in parts:
                overload(server, options)
    if limit and rate:
        row("16 callers / limit", rate / limit)
    if "swaps" in parts:
        write_bundle(data / "models", version=2)
        with ours(data, "resnet50@1", *options.daemon.split(), runtime=options.runtime) as server:
            with Client(server.address) as client:
                client.load_model("resnet50@1", make_default=True)
            swaps(server, options)
    if "by_hand" in parts:
        with by_hand(bundle, options.out) as server:
            peer = common("grpc.aio by hand, onnxruntime f32", server, options)
            if rate:
                row("ours / by hand", rate / peer)
    if "pytriton" in parts and options.pytriton is not None:
        with pytriton(bundle, options.out, options.pytriton) as server:
            peer = common("PyTriton, onnxruntime f32", server, options)
            if rate:
                row("ours / PyTriton", rate / peer)


if __name__ == "__main__":
    main()

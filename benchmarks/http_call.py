"""What a call over HTTP costs the daemon, against the same call over gRPC.

A JPEG of 1 kB as the body, the vector in base64 back: ResNet-18 at 32 px. Callers of both take
turns, on connections that stay open.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import grpc.aio

from benchmarks import results
from benchmarks.call_cost import NAME, write_bundle
from benchmarks.photographs import thumbnails
from benchmarks.servers import Server, multigrain
from multigrain.v1.embedding_pb2 import EmbedRequest
from multigrain.v1.embedding_pb2_grpc import EmbeddingServiceStub

CALLERS = 16

Call = Callable[[bytes], Awaitable[object]]


async def cost(server: Server, seconds: float, call: Call) -> float:
    """The daemon's CPU milliseconds per call, of 16 callers."""
    loop = asyncio.get_running_loop()
    images = itertools.cycle(thumbnails())
    ends = [loop.time() + 1 + seconds]
    done = 0

    async def caller() -> None:
        nonlocal done
        while loop.time() < ends[0]:
            await call(next(images))
            done += 1

    tasks = [asyncio.create_task(caller()) for _ in range(CALLERS)]
    await asyncio.sleep(1)
    before, first = server.parts()["daemon"], done
    await asyncio.sleep(seconds)
    used, count = server.parts()["daemon"] - before, done - first
    await asyncio.gather(*tasks)
    return 1000 * used / count


async def compare(
    server: Server, http: str, report: results.Report, rounds: int, each: float
) -> None:
    """Adds the comparison."""
    over_http: list[float] = []
    over_grpc: list[float] = []
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CALLERS)) as session,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub = EmbeddingServiceStub(channel)

        async def post(data: bytes) -> object:
            headers = {"Content-Type": "image/jpeg"}
            async with session.post(f"http://{http}/v1/embed", data=data, headers=headers) as got:
                got.raise_for_status()
                return await got.read()

        async def embed(data: bytes) -> object:
            return await stub.Embed(EmbedRequest(images=[data]))

        for _ in range(rounds):
            over_grpc.append(await cost(server, each, embed))
            over_http.append(await cost(server, each, post))
    report.compare(
        "POST /v1/embed, daemon's CPU time per call", over_http, unit="ms",
        over=over_grpc, reference="Embed over gRPC", at_most=1.25,
    )  # fmt: skip


def main() -> int:
    parser = results.parser("http_call")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or Path(folder)
        write_bundle(data / "models")
        report = results.Report("http_call", options)
        with multigrain(data, f"{NAME}@1") as server:
            found = re.search(r"http=(\S+)", (data / "bench.log").read_text())
            assert found is not None
            asyncio.run(compare(server, found[1], report, options.rounds, options.seconds))
        return report.finish()


if __name__ == "__main__":
    sys.exit(main())

"""Load generator of the serving benchmark, in its own process.

``python -m benchmarks.callers PLAN`` takes a :class:`Plan` as JSON and prints a :class:`Report` as
JSON. Every server gets the same calls with the same photographs.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import grpc
import numpy as np
import psutil

from benchmarks.photographs import photographs
from multigrain.v1 import embedding_pb2, embedding_pb2_grpc
from multigrain.v1.inference import service_pb2, service_pb2_grpc
from multigrain_client import Client

Call = Callable[[int, float], Awaitable[Any]]
#: Parts of a call's time. The last two are the transfer between daemon and engine, and gRPC on both
#: sides including the caller's own work.
STAGES = ("decode", "queue", "compute", "daemon to engine and back", "caller to daemon and back")


@dataclass(frozen=True)
class Plan:
    """The calls to make.

    Attributes:
        address: host:port.
        protocol: of EmbeddingService, or of the Open Inference Protocol (PyTriton).
        callers: number of callers. Each sends its next image after the previous answer; after
            a refusal it waits as long as the server says, or 0.1 s.
        rate: calls per second regardless of the answers, instead of ``callers``.
        stream: number of images to send in one EmbedStream of the Python client, instead.
        seconds: duration.
        deadline: timeout of each call in seconds.
        model: for PyTriton.
    """

    address: str
    protocol: Literal["embed", "triton"] = "embed"
    callers: int = 16
    rate: float = 0.0
    stream: int = 0
    seconds: float = 10.0
    deadline: float = 30.0
    model: str = "resnet50"


@dataclass
class Report:
    """Results of a plan.

    Attributes:
        by_second: answers in each second.
        cpu_seconds: of the callers' process since the first call.
        retry_delays: number of refusals that came with a retry delay.
        stages_ms: medians of the parts of a call, with a single caller of EmbeddingService.
    """

    answered: int = 0
    seconds: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    codes: dict[str, int] = field(default_factory=dict)
    retry_delays: int = 0
    by_second: list[int] = field(default_factory=list)
    cpu_seconds: float = 0.0
    rss_mb: tuple[float, ...] = ()
    stages_ms: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return self.answered / self.seconds


class Tally:
    """Collects the results of calls."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self._cpu = time.process_time()
        self.latencies: list[float] = []
        self.ends: list[float] = []
        self.codes: Counter[str] = Counter()
        self.retry_delays = 0
        self.rss: list[float] = []
        self.stages: list[tuple[float, ...]] = []

    def answered(self, began: float, answer: object = None) -> None:
        now = time.perf_counter()
        self.latencies.append(now - began)
        self.ends.append(now - self.start)
        if isinstance(answer, embedding_pb2.EmbedResponse):
            t = answer.timings
            inside = t.decode_ns + t.queue_ns + t.compute_ns
            outside = 1e9 * (now - began) - t.total_ns
            self.stages.append(
                (t.decode_ns, t.queue_ns, t.compute_ns, t.total_ns - inside, outside)
            )

    def report(self) -> Report:
        seconds = time.perf_counter() - self.start
        latencies = np.array(self.latencies or [0.0]) * 1000
        return Report(
            answered=len(self.latencies),
            seconds=seconds,
            p50_ms=float(np.percentile(latencies, 50)),
            p99_ms=float(np.percentile(latencies, 99)),
            codes=dict(self.codes),
            retry_delays=self.retry_delays,
            by_second=np.bincount(np.array(self.ends, int), minlength=int(seconds)).tolist(),
            cpu_seconds=time.process_time() - self._cpu,
            rss_mb=tuple(self.rss),
            stages_ms=self._stages_ms(),
        )

    def _stages_ms(self) -> dict[str, float]:
        if not self.stages:
            return {}
        medians = np.median(np.array(self.stages), axis=0) / 1e6
        return dict(zip(STAGES, medians.tolist(), strict=True))


async def run(plan: Plan) -> Report:
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.enable_http_proxy", 0),  # the servers run on this machine
    ]
    async with grpc.aio.insecure_channel(plan.address, options=options) as channel:
        call = _call(plan, channel)
        for number in range(8):
            await call(number, 60.0)
        tally = Tally()
        if plan.rate:
            await _at_rate(plan, call, tally)
        else:
            await asyncio.gather(*(_closed(plan, call, tally, n) for n in range(plan.callers)))
        return tally.report()


def _call(plan: Plan, channel: grpc.aio.Channel) -> Call:
    if plan.protocol == "embed":
        embed = embedding_pb2_grpc.EmbeddingServiceStub(channel).Embed
        requests = [embedding_pb2.EmbedRequest(images=[data]) for data in photographs()]
        return lambda number, seconds: embed(requests[number % len(requests)], timeout=seconds)
    infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
    inputs = [_infer_request(plan.model, data) for data in photographs()]
    return lambda number, seconds: infer(inputs[number % len(inputs)], timeout=seconds)


def _infer_request(model: str, data: bytes) -> service_pb2.ModelInferRequest:
    tensor = service_pb2.ModelInferRequest.InferInputTensor(
        name="image", datatype="BYTES", shape=[1, 1]
    )
    raw = len(data).to_bytes(4, "little") + data
    return service_pb2.ModelInferRequest(
        model_name=model, inputs=[tensor], raw_input_contents=[raw]
    )


async def _closed(plan: Plan, call: Call, tally: Tally, number: int) -> None:
    while time.perf_counter() - tally.start < plan.seconds:
        number += plan.callers
        delay = await _one(plan, call, tally, number)
        if delay is not None:
            await asyncio.sleep(delay)


async def _at_rate(plan: Plan, call: Call, tally: Tally) -> None:
    in_flight: set[asyncio.Task[float | None]] = set()
    for number in range(int(plan.rate * plan.seconds)):
        ahead = tally.start + number / plan.rate - time.perf_counter()
        if ahead > 0:
            await asyncio.sleep(ahead)
        task = asyncio.create_task(_one(plan, call, tally, number))
        in_flight.add(task)
        task.add_done_callback(in_flight.discard)
    if in_flight:
        await asyncio.wait(in_flight)


async def _one(plan: Plan, call: Call, tally: Tally, number: int) -> float | None:
    """Makes one call and returns how long to wait if it was refused."""
    began = time.perf_counter()
    try:
        answer = await call(number, plan.deadline)
    except grpc.aio.AioRpcError as error:
        tally.codes[error.code().name] += 1
        for key, value in error.trailing_metadata() or ():
            if key == "grpc-retry-pushback-ms":
                tally.retry_delays += 1
                return int(value) / 1000
        return 0.1
    tally.answered(began, answer if plan.callers == 1 else None)
    return None


def stream(plan: Plan) -> Report:
    """Embeds many images through one EmbedStream."""
    files = photographs()
    process = psutil.Process()
    with Client(plan.address) as client:
        for _ in client.embed_stream(files):
            pass
        tally = Tally()
        images = (files[number % len(files)] for number in range(plan.stream))
        for answer in client.embed_stream(images):
            if answer.error is not None:
                raise RuntimeError(f"image {answer.index}: {answer.error}")
            tally.answered(tally.start)
            if len(tally.latencies) % 500 == 1:
                tally.rss.append(process.memory_info().rss / 1e6)
    return tally.report()


def main() -> None:
    plan = Plan(**json.loads(sys.argv[1]))
    report = stream(plan) if plan.stream else asyncio.run(run(plan))
    print(json.dumps(asdict(report)))


if __name__ == "__main__":
    main()

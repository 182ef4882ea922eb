"""Load generator of the serving benchmarks, in its own process.

``python -m benchmarks.callers PLAN`` takes a :class:`Plan` as JSON and prints a :class:`Counts` as
JSON; :func:`call` starts it. Every server gets the same calls with the same photographs. Counted is
what ends inside the window: no call of the warm-up, and nothing of those that still wait for an
answer or for the end of a delay when the window closes.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import grpc
import numpy as np
import psutil

from benchmarks.photographs import photographs, thumbnails
from multigrain.v1 import embedding_pb2, embedding_pb2_grpc
from multigrain.v1.inference import service_pb2, service_pb2_grpc
from multigrain_client import Client

_FIRST = 8  # calls before the warm-up, one at a time
_PUSHBACK = "grpc-retry-pushback-ms"
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
        warm_up: seconds of calls that are not counted, before the window.
        seconds: length of the window.
        deadline: timeout of each call in seconds.
        model: for PyTriton.
        small: whether to send thumbnails instead of photographs.
        connections: that the callers share, in rotation.
    """

    address: str
    protocol: Literal["embed", "triton"] = "embed"
    callers: int = 16
    rate: float = 0.0
    stream: int = 0
    warm_up: float = 2.0
    seconds: float = 10.0
    deadline: float = 30.0
    model: str = "resnet50"
    small: bool = False
    connections: int = 1

    def files(self) -> list[bytes]:
        """The files to send."""
        return thumbnails() if self.small else photographs()


@dataclass
class Counts:
    """What ended inside the window.

    Attributes:
        answered: calls that were answered.
        answered_in_all: in the warm-up too.
        seconds: length of the window.
        codes: status -> number of calls that failed with it.
        by_second: answers in each second.
        cpu_seconds: of the callers' process.
        retry_delays: number of refusals that came with a retry delay.
        rss_mb: memory of the callers' process from time to time.
        stages_ms: medians of the parts of a call, with a single caller of EmbeddingService.
    """

    answered: int = 0
    answered_in_all: int = 0
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
        """Answers per second."""
        return self.answered / self.seconds

    @property
    def refused(self) -> int:
        """Calls that the server did not take because of the load."""
        return self.codes.get("RESOURCE_EXHAUSTED", 0)


class Tally:
    """Collects the results of calls between :meth:`open` and :meth:`close`."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.latencies: list[float] = []
        self.ends: list[float] = []
        self.codes: Counter[str] = Counter()
        self.rss: list[float] = []
        self.stages: list[tuple[float, ...]] = []
        self._start = self._cpu = 0.0
        self._open = False

    def open(self) -> None:
        """Begins the window."""
        self._start, self._cpu, self._open = time.perf_counter(), time.process_time(), True

    def close(self) -> None:
        """Ends the window."""
        self.counts.seconds = time.perf_counter() - self._start
        self.counts.cpu_seconds = time.process_time() - self._cpu
        self._open = False

    def answered(self, began: float, answer: object = None) -> None:
        """Counts an answered call that began at a time of ``time.perf_counter``."""
        self.counts.answered_in_all += 1
        if not self._open:
            return
        now = time.perf_counter()
        self.latencies.append(now - began)
        self.ends.append(now - self._start)
        if isinstance(answer, embedding_pb2.EmbedResponse):
            t = answer.timings
            inside = t.decode_ns + t.queue_ns + t.compute_ns
            outside = 1e9 * (now - began) - t.total_ns
            self.stages.append(
                (t.decode_ns, t.queue_ns, t.compute_ns, t.total_ns - inside, outside)
            )

    def failed(self, code: str, *, delayed: bool) -> None:
        """Counts a call that was not answered."""
        if self._open:
            self.codes[code] += 1
            self.counts.retry_delays += delayed

    def result(self) -> Counts:
        """The counts of the window, once it is closed."""
        counts = self.counts
        latencies = np.array(self.latencies or [0.0]) * 1000
        counts.answered = len(self.latencies)
        counts.p50_ms, counts.p99_ms = np.percentile(latencies, (50, 99)).tolist()
        counts.codes = dict(self.codes)
        seconds = np.bincount(np.array(self.ends, int), minlength=int(counts.seconds))
        counts.by_second = seconds.tolist()
        counts.rss_mb = tuple(self.rss)
        if self.stages:
            medians = np.median(np.array(self.stages), axis=0) / 1e6
            counts.stages_ms = dict(zip(STAGES, medians.tolist(), strict=True))
        return counts


def call(address: str, **fields: object) -> Counts:
    """Runs callers in a process of their own; ``fields`` are those of :class:`Plan`."""
    plan = Plan(address, **fields)  # type: ignore[arg-type]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.callers", json.dumps(asdict(plan))],
        stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    return Counts(**json.loads(done.stdout))


async def run(plan: Plan) -> Counts:
    """Connects, and makes the calls."""
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.enable_http_proxy", 0),  # the servers run on this machine
    ]
    if plan.connections > 1:
        options.append(("grpc.use_local_subchannel_pool", 1))
    async with AsyncExitStack() as stack:
        calls = [
            _call(
                plan,
                await stack.enter_async_context(
                    grpc.aio.insecure_channel(plan.address, options=options)
                ),
            )
            for _ in range(plan.connections)
        ]

        def call(number: int, seconds: float) -> Awaitable[Any]:
            return calls[number % len(calls)](number, seconds)

        for number in range(_FIRST):
            await call(number, 60.0)
        counts = await window(plan, call)
    counts.answered_in_all += _FIRST
    return counts


async def window(plan: Plan, call: Call) -> Counts:
    """Makes the calls until the window ends, and drops those that still wait."""
    tally = Tally()
    works = [_at_rate(plan, call, tally)] if plan.rate else []
    works = works or [_closed(plan, call, tally, number) for number in range(plan.callers)]
    tasks = {asyncio.create_task(work) for work in works}
    await asyncio.sleep(plan.warm_up)
    tally.open()
    ended, waiting = await asyncio.wait(
        tasks, timeout=plan.seconds, return_when=asyncio.FIRST_EXCEPTION
    )
    tally.close()
    for task in waiting:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended:
        task.result()  # only an error ends one
    return tally.result()


def _call(plan: Plan, channel: grpc.aio.Channel) -> Call:
    if plan.protocol == "embed":
        embed = embedding_pb2_grpc.EmbeddingServiceStub(channel).Embed
        requests = [embedding_pb2.EmbedRequest(images=[data]) for data in plan.files()]
        return lambda number, seconds: embed(requests[number % len(requests)], timeout=seconds)
    infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
    inputs = [_infer_request(plan.model, data) for data in plan.files()]
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
    while True:
        number += plan.callers
        delay = await _one(plan, call, tally, number)
        if delay is not None:
            await asyncio.sleep(delay)


async def _at_rate(plan: Plan, call: Call, tally: Tally) -> None:
    start = time.perf_counter()
    async with asyncio.TaskGroup() as in_flight:
        for number in itertools.count():
            ahead = start + number / plan.rate - time.perf_counter()
            if ahead > 0:
                await asyncio.sleep(ahead)
            in_flight.create_task(_one(plan, call, tally, number))


async def _one(plan: Plan, call: Call, tally: Tally, number: int) -> float | None:
    """Makes one call and returns how long to wait if it was refused."""
    began = time.perf_counter()
    try:
        answer = await call(number, plan.deadline)
    except grpc.aio.AioRpcError as error:
        delays = [int(v) for k, v in error.trailing_metadata() or () if k == _PUSHBACK]
        tally.failed(error.code().name, delayed=bool(delays))
        return delays[0] / 1000 if delays else 0.1
    tally.answered(began, answer if plan.callers == 1 else None)
    return None


def stream(plan: Plan) -> Counts:
    """Embeds many images through one EmbedStream."""
    files = plan.files()
    process = psutil.Process()
    with Client(plan.address) as client:
        for _ in client.embed_stream(files):
            pass
        tally = Tally()
        tally.open()
        start = time.perf_counter()
        images = (files[number % len(files)] for number in range(plan.stream))
        for answer in client.embed_stream(images):
            if answer.error is not None:
                raise RuntimeError(f"image {answer.index}: {answer.error}")
            tally.answered(start)
            if len(tally.latencies) % 50 == 1:
                tally.rss.append(process.memory_info().rss / 1e6)
        tally.close()
    return tally.result()


def main() -> None:
    plan = Plan(**json.loads(sys.argv[1]))
    counts = stream(plan) if plan.stream else asyncio.run(run(plan))
    print(json.dumps(asdict(counts)))


if __name__ == "__main__":
    main()

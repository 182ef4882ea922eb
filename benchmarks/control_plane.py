"""Scaling of the daemon's job registry and event streams.

Four parts, in one run: 10,000 jobs in the registry; one client that reads 1,000,000 stored events;
500 subscribers of a running job; a trainer that writes events. The first three start a daemon on
loopback with a temporary data directory; the last one measures the channel between a worker and a
runner.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from grpc import aio

from benchmarks import results
from multigrain.events.log import Event, EventWriter, utc_now
from multigrain.events.records import JobState, LossRecord, Record, StateRecord
from multigrain.jobs.ipc import ChannelReporter, ChannelServer, Done, Emit, Hello
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.specs.training import TrainingSpec
from multigrain.v1.job_pb2 import ListJobsRequest, StreamEventsRequest
from multigrain.v1.job_pb2_grpc import JobServiceStub
from tests.e2e.daemon import Daemon

PARTS = ("registry", "replay", "subscribers", "writing")
UNITS = {"ms": "ms", "s": "s", "us": "µs", "event": "µs", "seconds": "s"}
AT_MOST = {
    "registry: start": 2.0,
    "registry: first page": 20.0,
    "registry: by label": 20.0,
    "registry: by name": 20.0,
    "registry: no match": 20.0,
    "subscribers: p99": 200.0,
    "subscribers: daemon cores": 0.5,
    "writing: share of a 50 ms step": 0.005,
}
AT_LEAST = {"replay: events per second": 100_000.0}


def loss(step: int, steps: int) -> LossRecord:
    return LossRecord(step, steps, 1, 1, 2.5, 2.0, 3.0, 0.05, 0.1, 200.0, 0.01, eta_seconds=9.0)


def make_job(data: Path, number: int, losses: int) -> str:
    """Writes the folder of a finished training run."""
    job_id = f"train-20260101-000000-{number:06x}"
    folder = JobFolder(data / "jobs" / job_id)
    folder.path.mkdir(parents=True)
    created = f"2026-01-01T{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}.000000Z"
    request = JobRequest(
        job_id=job_id,
        kind=JobKind.TRAINING,
        name=f"run {number}",
        labels={"team": "ab"[number % 2]},
        create_time=created,
        training=TrainingSpec(),
    )
    folder.spec.write_text(request.model_dump_json())
    records: list[Record] = [
        StateRecord(JobState.QUEUED),
        StateRecord(JobState.STARTING),
        StateRecord(JobState.RUNNING),
        *(loss(step, losses) for step in range(1, losses + 1)),
        StateRecord(JobState.SUCCEEDED),
    ]
    now = utc_now()
    with folder.events.open("wb") as file:
        for seq, record in enumerate(records, 1):
            file.write(Event(seq, now, job_id, 1, record).encode())
    return job_id


def timed_start(daemon: Daemon) -> float:
    start = time.perf_counter()
    daemon.start()
    return time.perf_counter() - start


def registry(folder: Path, jobs: int) -> dict[str, float]:
    """Seconds to start, milliseconds of ListJobs over gRPC (median and maximum of 50)."""
    for number in range(jobs):
        make_job(folder / "data", number, 3)
    daemon = Daemon(folder)
    rebuild = timed_start(daemon)
    daemon.stop()
    start = timed_start(daemon)
    results: dict[str, float] = {"jobs": jobs, "rebuild_s": rebuild, "start_s": start}
    with daemon.client() as client:
        middle = client.ListJobs(ListJobsRequest(page_size=1000)).next_page_token
        for name, request in {
            "first_page": ListJobsRequest(page_size=50),
            "deep_page": ListJobsRequest(page_size=1000, page_token=middle),
            "by_label": ListJobsRequest(page_size=50, labels={"team": "b"}),
            "by_name": ListJobsRequest(page_size=50, name_contains="run 77"),
            "no_match": ListJobsRequest(page_size=50, name_contains="nothing like this"),
        }.items():
            times = []
            for _ in range(50):
                start = time.perf_counter()
                client.ListJobs(request)
                times.append(1000 * (time.perf_counter() - start))
            results[f"{name}_ms"] = statistics.median(times)
            results[f"{name}_max_ms"] = max(times)
    daemon.stop()
    return results


def replay(folder: Path, events: int) -> dict[str, float]:
    """Events per second from a finished job's log to one client."""
    job_id = make_job(folder / "data", 1, events)
    daemon = Daemon(folder).start()
    process = psutil.Process(daemon.process.pid)
    with daemon.client() as client:
        used, own, start = process.cpu_times(), time.process_time(), time.perf_counter()
        last = count = 0
        for event in client.stream_events(job_id, follow=False):
            count, last = count + 1, event.seq
        seconds, own = time.perf_counter() - start, time.process_time() - own
        daemons = sum(process.cpu_times()[:2]) - sum(used[:2])
    daemon.stop()
    assert count == last == events + 4
    return {
        "events": count,
        "seconds": seconds,
        "events_per_second": count / seconds,
        "daemon_cpu_us_per_event": 1e6 * daemons / count,
        "client_cpu_us_per_event": 1e6 * own / count,
    }


async def follow(address: str, job_id: str, count: int, total: int) -> list[list[float]]:
    """Times at which each subscriber received each event."""

    async def one(channel: aio.Channel) -> list[float]:
        call = JobServiceStub(channel).StreamEvents(
            StreamEventsRequest(job_id=job_id, after_seq=1, follow=True)
        )
        times = []
        async for batch in call:
            now = time.time()
            times += [now for event in batch.events if event.HasField("loss")]
            if len(times) == total:
                call.cancel()
                return times
        return times

    # Fifty streams per connection, like many clients behind a few proxies.
    options = [("grpc.enable_http_proxy", 0)]  # the daemon runs on this machine
    channels = [aio.insecure_channel(address, options) for _ in range(max(1, count // 50))]
    try:
        return await asyncio.gather(*(one(channels[i % len(channels)]) for i in range(count)))
    finally:
        for channel in channels:
            await channel.close()


def subscribers(folder: Path, count: int, rate: float, seconds: float) -> dict[str, float]:
    """Milliseconds from writing an event to receiving it, and the cores that the daemon uses.

    This process writes the event log and holds its lock, as a runner does. The subscribers run in
    another process, so that their work is not counted.
    """
    data, total = folder / "data", int(rate * seconds)
    job_id = make_job(data, 1, 1)
    path = JobFolder(data / "jobs" / job_id).events
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    writer = EventWriter(path, job_id)
    writer.append(StateRecord(JobState.RUNNING), 1)
    daemon = Daemon(folder).start()
    process = psutil.Process(daemon.process.pid)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        answer = pool.apply_async(_follow, (daemon.address, job_id, count, total))
        while f"multigrain_event_subscribers {count:.1f}" not in daemon.metrics():
            time.sleep(0.2)
        used, start, written = sum(process.cpu_times()[:2]), time.perf_counter(), []
        for step in range(total):
            delay = start + step / rate - time.perf_counter()
            if delay > 0:
                time.sleep(delay)
            written.append(time.time())
            writer.append(loss(step + 1, total), 1)
        received = answer.get(timeout=seconds * 4 + 60)
        wall = time.perf_counter() - start
        used = sum(process.cpu_times()[:2]) - used
    writer.append(StateRecord(JobState.SUCCEEDED), 1)
    writer.close()
    daemon.end()
    lags = sorted(
        1000 * (got - sent) for times in received for got, sent in zip(times, written, strict=True)
    )
    return {
        "subscribers": count,
        "events": len(lags),
        "p50_ms": lags[len(lags) // 2],
        "p99_ms": lags[int(len(lags) * 0.99)],
        "max_ms": lags[-1],
        "daemon_cores": used / wall,
        "seconds": wall,
    }


def _follow(address: str, job_id: str, count: int, total: int) -> list[list[float]]:
    return asyncio.run(follow(address, job_id, count, total))


def _record(folder: Path, address: Connection) -> None:
    """The runner's side: appends the worker's records to the event log."""
    server = ChannelServer(folder)
    address.send((server.address, server.token))
    used, count = time.process_time(), 0
    with EventWriter(folder / "events.jsonl", "job") as writer:
        while True:
            for received in server.wait(1.0):
                match received.message:
                    case Emit(record):
                        writer.append(record, 1)
                        count += 1
                    case Done():
                        address.send((count, time.process_time() - used))
                        server.close()
                        return


def writing(folder: Path, events: int) -> dict[str, float]:
    """CPU time per event of the trainer (all threads) and of the runner."""
    ours, theirs = multiprocessing.Pipe()
    runner = multiprocessing.get_context("spawn").Process(target=_record, args=(folder, theirs))
    runner.start()
    address, token = ours.recv()
    lost = threading.Event()
    reporter = ChannelReporter(address, Hello(token, 0, 1, os.getpid()), lambda _: lost.set())
    pause = 0.005
    used = time.process_time()
    for _ in range(events):
        time.sleep(pause)
    idle = time.process_time() - used
    used, step_thread = time.process_time(), 0.0
    for step in range(events):
        start = time.thread_time()
        reporter.emit(loss(step + 1, events))
        step_thread += time.thread_time() - start
        time.sleep(pause)
    reporter.finish(Done(True, ""))
    used = time.process_time() - used - idle
    count, runners = ours.recv()
    runner.join()
    assert count == events
    return {
        "events": events,
        "cost_in_the_step_us": 1e6 * step_thread / events,
        "cost_in_all_threads_of_the_trainer_us": 1e6 * used / events,
        "share_of_a_50_ms_step": used / events / 0.05,
        "cost_in_the_runner_us": 1e6 * runners / events,
    }


def goals(report: results.Report, part: str, found: dict[str, float]) -> None:
    """Adds what a part has measured."""
    for name, value in found.items():
        text, _, last = name.rpartition("_")
        shown = f"{part}: {text if last in ('ms', 's', 'us') else name}".replace("_", " ")
        report.compare(
            shown, value, unit=UNITS.get(last, ""),
            at_most=AT_MOST.get(shown), at_least=AT_LEAST.get(shown),
        )  # fmt: skip


def main() -> int:
    parser = results.parser("control_plane")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default all")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--count", type=int, default=500, help="number of subscribers")
    parser.add_argument("--rate", type=float, default=50, help="events per second for them")
    parser.add_argument("--seconds", type=float, default=20, help="of events for them")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    report = results.Report("control_plane", options)
    runs: dict[str, Callable[[Path], dict[str, float]]] = {
        "registry": lambda folder: registry(folder, options.jobs),
        "replay": lambda folder: replay(folder, options.events),
        "subscribers": lambda folder: subscribers(
            folder, options.count, options.rate, options.seconds
        ),
        "writing": lambda folder: writing(folder, 2000),
    }
    for part in options.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            goals(report, part, runs[part](Path(folder)))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())

"""The daemon may die; the job and its events go on."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest

from multigrain.v1.job_pb2 import JOB_STATE_SUCCEEDED, JobEvent
from multigrain_client import Client, RetryPolicy
from tests.e2e.daemon import Daemon, wait_for_no_processes
from tests.e2e.jobs import small_training

pytestmark = [pytest.mark.process, pytest.mark.slow]

SUBSCRIBERS = 20


class Subscriber(threading.Thread):
    """Collects a job's events; an unsteady one hangs up at random and comes back."""

    def __init__(self, address: str, job_id: str, *, unsteady: int | None) -> None:
        super().__init__()
        self._address = address
        self._job_id = job_id
        self._random = random.Random(unsteady) if unsteady is not None else None
        self.events: list[JobEvent] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._ended():
                self._subscribe()
        except BaseException as error:
            self.error = error

    def _subscribe(self) -> None:
        stay = self._random.randint(1, 9) if self._random else None
        after = self.events[-1].seq if self.events else 0
        with Client(self._address, retry=RetryPolicy(stream_patience=60)) as client:
            for event in client.stream_events(self._job_id, after_seq=after):
                self.events.append(event)
                if stay is not None and len(self.events) and event.seq - after >= stay:
                    return

    def _ended(self) -> bool:
        last = self.events[-1] if self.events else None
        return last is not None and last.state.state >= JOB_STATE_SUCCEEDED


def test_twenty_subscribers_hold_the_same_list_after_the_daemon_was_killed(
    tmp_path: Path, digits: Path
) -> None:
    # A fixed port, so that the restarted daemon is found where the first one was.
    daemon = Daemon(tmp_path, roots=[digits]).start()
    try:
        port = daemon.address.rsplit(":", 1)[1]
        daemon.fix_port(port)
        with daemon.client() as client:
            job = client.start_training(small_training(digits, epochs=5))
        subscribers = [
            Subscriber(daemon.address, job.job_id, unsteady=n if n % 2 else None)
            for n in range(SUBSCRIBERS)
        ]
        for subscriber in subscribers:
            subscriber.start()
        wait_for_losses(daemon, job.job_id, 6)
        daemon.kill()
        time.sleep(1)
        daemon.start()
        for subscriber in subscribers:
            subscriber.join(timeout=180)
        assert not any(s.is_alive() for s in subscribers)
        assert [s.error for s in subscribers if s.error] == []

        with daemon.client() as client:
            ended = client.job(job)
        assert ended.state == JOB_STATE_SUCCEEDED
        assert ended.attempt == 1
        expected = list(range(1, ended.last_seq + 1))
        first = [event.SerializeToString(deterministic=True) for event in subscribers[0].events]
        for subscriber in subscribers:
            assert [event.seq for event in subscriber.events] == expected
            mine = [e.SerializeToString(deterministic=True) for e in subscriber.events]
            assert mine == first
        losses = [e.loss.step for e in subscribers[0].events if e.HasField("loss")]
        assert losses == list(range(1, ended.progress.total_steps + 1))
        daemon.stop()
        wait_for_no_processes(daemon.data_dir)
    finally:
        daemon.end()


def wait_for_losses(daemon: Daemon, job_id: str, count: int) -> None:
    """Until the job's own record holds ``count`` loss points."""
    record = daemon.data_dir / "jobs" / job_id / "events.jsonl"
    deadline = time.monotonic() + 180
    while record.read_text().count('"loss":{') < count:
        assert time.monotonic() < deadline, record.read_text()
        time.sleep(0.05)

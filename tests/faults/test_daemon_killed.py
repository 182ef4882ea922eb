"""SIGKILL of the daemon at random moments: no job, no event and no loaded model is lost."""

from __future__ import annotations

import itertools
import os
import random
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from multigrain.events.log import read_events
from multigrain.jobs.job_folder import JobFolder
from multigrain.v1 import job_pb2
from multigrain.v1.job_pb2 import JobEvent
from multigrain.v1.model_pb2 import MODEL_STATE_READY
from multigrain_client import Client, MultigrainClientError, RetryPolicy
from tests.e2e.daemon import wait_for_no_processes
from tests.engine.pictures import picture
from tests.faults.curve import assert_numbered, assert_whole_curve
from tests.faults.serving import amount, serving_daemon
from tests.faults.subscriber import Subscriber
from tests.server.process import steady_port

pytestmark = [pytest.mark.process, pytest.mark.slow]

MODELS = ("one", "two")
STEPS = 60
ENDED = {job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_CANCELLED}


def wait(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


class Chaos:
    """A daemon that is killed at random, the requests sent to it, and their expected effects.

    Attributes:
        submitted: request_id -> job_id, "" while no response has arrived.
        expected: models that are loaded according to all responses so far.
        uncertain: models that may be loaded or not: the daemon died before it responded.
        recovery_seconds: from each start to the first responses of all models.
    """

    def __init__(self, folder: Path, images: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.daemon = serving_daemon(
            folder,
            MODELS,
            ["--devices=cpu:2", "--jobs-poll-seconds=0.02", f"--listen=127.0.0.1:{steady_port()}"],
            roots=[images],
            module="tests.faults.quick_daemon",
        )
        self.address = self.daemon.address
        self.spec = {
            "preset": "digits-demo",
            "dataset": {"train_path": str(images), "val_path": ""},
            "evaluation": {"every_epochs": 0},
            "max_restarts": 0,
        }
        self.submitted: dict[str, str] = {}
        self.expected = set(MODELS)
        self.uncertain: set[str] = set()
        self.subscribers: list[Subscriber] = []
        self.recovery_seconds: list[float] = []
        self._numbers = itertools.count()
        with self.daemon.client() as client:
            self.vectors = {name: client.embed([picture(1)], model=name) for name in MODELS}

    # Requests. Each may fail, because the daemon is killed meanwhile.

    def submit(self, client: Client) -> None:
        request_id = f"request-{next(self._numbers)}"
        self.submitted[request_id] = ""
        self._submit(client, request_id)

    def _submit(self, client: Client, request_id: str) -> None:
        number = int(request_id.rpartition("-")[2])
        labels = {"steps": str(STEPS), "every": "10", "pause": str(0.01 * (1 + number % 3))}
        job = client.start_training(self.spec, request_id=request_id, labels=labels)
        self.submitted[request_id] = job.job_id
        for chance in (None, random.Random(number)):
            subscriber = Subscriber(self.address, job.job_id, chance)
            subscriber.start()
            self.subscribers.append(subscriber)

    def cancel(self, client: Client) -> None:
        active = [job for job in client.jobs() if job.state not in ENDED]
        if active:
            job = self.random.choice(active)
            try:
                client.cancel(job)
            except MultigrainClientError as error:
                if error.kind != "WRONG_STATE":  # the job has just ended
                    raise

    def change_models(self, client: Client) -> None:
        name = self.random.choice(MODELS)
        self.uncertain.add(name)
        if name in self.expected:
            client.unload_model(name)
            self.expected.discard(name)
        else:
            client.load_model(name)
            self.expected.add(name)
        self.uncertain.discard(name)

    # Kill and restart.

    def kill(self) -> None:
        """Kills the daemon at a random moment during requests."""
        dead = threading.Event()

        def kill_now() -> None:
            self.daemon.kill()
            dead.set()

        timer = threading.Timer(self.random.expovariate(1 / 0.3), kill_now)
        others = [self.cancel, self.change_models]
        self.random.shuffle(others)
        with Client(self.address, retry=RetryPolicy(attempts=1)) as client:
            timer.start()
            try:
                # More than one job per kill would be too much for two cores.
                for doing in (self.submit, *others):
                    if not dead.wait(self.random.expovariate(1 / 0.05)):
                        doing(client)
                while not dead.is_set():
                    client.embed([picture(1)])
            except MultigrainClientError:
                dead.wait(60)
        timer.join()

    def start(self) -> None:
        """Restarts it, sometimes killing it during its start; waits until it serves."""
        if self.random.random() < 0.2:
            self.daemon.start_process()
            time.sleep(self.random.random() * 1.5)  # the test is about random moments
            self.daemon.kill()
        began = time.monotonic()
        self.daemon.start()
        with self.daemon.client() as client:
            ready = lambda: {  # noqa: E731
                m.name for m in client.models() if m.state == MODEL_STATE_READY
            }
            wait(lambda: ready() >= self.expected - self.uncertain, "models are not loaded again")
            for name in sorted(self.expected - self.uncertain):
                again = client.embed([picture(1)], model=name)
                np.testing.assert_array_equal(again, self.vectors[name])
            self.recovery_seconds.append(time.monotonic() - began)
            loaded = {model.name for model in client.models(loaded_only=True)}
            assert loaded - self.uncertain == self.expected - self.uncertain
            self.expected, self.uncertain = loaded, set()
            for request_id, job_id in self.submitted.items():
                if not job_id:  # no response: retry with the same request_id
                    self._submit(client, request_id)

    def check(self) -> None:
        """Waits for all jobs, and compares all subscribers with the event logs."""
        with self.daemon.client() as client:
            wait(lambda: all(job.state in ENDED for job in client.jobs()), "jobs do not end")
            jobs = {job.job_id: job for job in client.jobs()}
        assert sorted(jobs) == sorted(self.submitted.values())
        for request_id, job_id in self.submitted.items():
            assert jobs[job_id].request_id == request_id
        received: dict[str, list[bytes]] = {}
        for subscriber in self.subscribers:
            subscriber.join(60)
            assert not subscriber.is_alive(), "a stream does not end"
            job_id = subscriber.job_id
            assert received.setdefault(job_id, subscriber.events) == subscriber.events
        assert received.keys() == jobs.keys()
        for job_id, job in jobs.items():
            written = list(read_events(JobFolder(self.daemon.data_dir / "jobs" / job_id).events))
            assert_numbered(written)
            assert [JobEvent.FromString(raw).seq for raw in received[job_id]] == [
                event.seq for event in written
            ]
            # Killing the daemon does not affect the job.
            assert job.attempt <= 1
            if job.state == job_pb2.JOB_STATE_SUCCEEDED:
                assert_whole_curve(written, STEPS)

    def end(self) -> None:
        for subscriber in self.subscribers:
            subscriber.stop()
        self.daemon.end()


def test_a_daemon_killed_at_random_moments_loses_nothing(tmp_path: Path) -> None:
    kills = amount(5, 60)
    seed = int(os.environ.get("MULTIGRAIN_FAULT_SEED", "0")) or random.SystemRandom().getrandbits(
        32
    )
    print(f"MULTIGRAIN_FAULT_SEED={seed}, {kills} kills")
    images = tmp_path / "images"
    for name in ("cat", "dog"):
        (images / name).mkdir(parents=True)
        (images / name / "1.png").write_bytes(picture(1))
    chaos = Chaos(tmp_path, images, seed)
    try:
        for _ in range(kills):
            chaos.kill()
            chaos.start()
        chaos.check()
        chaos.daemon.stop()
        wait_for_no_processes(chaos.daemon.data_dir, 60)
    finally:
        chaos.end()
    states = (
        f"{len(chaos.submitted)} jobs, {sum(f.breaks for f in chaos.subscribers)} broken streams"
    )
    print(
        f"{kills} kills, {states}; recovered in {statistics.median(chaos.recovery_seconds):.2f} s "
        f"(median), {max(chaos.recovery_seconds):.2f} s at most"
    )

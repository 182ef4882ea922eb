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
from tests.faults.follower import Follower
from tests.faults.serving import amount, serving_daemon
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
    """A daemon that is killed, what was asked of it, and what it has promised.

    Attributes:
        submitted: request_id -> job_id, "" while the answer has not been heard.
        promised: models that are loaded by all that the daemon has answered.
        unsure: models that may be loaded or not: it died with the answer on its lips.
        back: seconds from each start to the first answers of all models.
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
        self.promised = set(MODELS)
        self.unsure: set[str] = set()
        self.followers: list[Follower] = []
        self.back: list[float] = []
        self._numbers = itertools.count()
        with self.daemon.client() as client:
            self.vectors = {name: client.embed([picture(1)], model=name) for name in MODELS}

    # What is asked of the daemon. Each may end in an error, when it dies meanwhile.

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
            follower = Follower(self.address, job.job_id, chance)
            follower.start()
            self.followers.append(follower)

    def cancel(self, client: Client) -> None:
        active = [job for job in client.jobs() if job.state not in ENDED]
        if active:
            job = self.random.choice(active)
            try:
                client.cancel(job)
            except MultigrainClientError as error:
                if error.kind != "WRONG_STATE":  # it has just ended
                    raise

    def change_models(self, client: Client) -> None:
        name = self.random.choice(MODELS)
        self.unsure.add(name)
        if name in self.promised:
            client.unload_model(name)
            self.promised.discard(name)
        else:
            client.load_model(name)
            self.promised.add(name)
        self.unsure.discard(name)

    # Death and return.

    def kill(self) -> None:
        """Kills the daemon at a random moment of something it does."""
        dead = threading.Event()

        def killer() -> None:
            self.daemon.kill()
            dead.set()

        timer = threading.Timer(self.random.expovariate(1 / 0.3), killer)
        others = [self.cancel, self.change_models]
        self.random.shuffle(others)
        with Client(self.address, retry=RetryPolicy(attempts=1)) as client:
            timer.start()
            try:
                # One job for each kill is what two cores can do.
                for doing in (self.submit, *others):
                    if not dead.wait(self.random.expovariate(1 / 0.05)):
                        doing(client)
                while not dead.is_set():
                    client.embed([picture(1)])
            except MultigrainClientError:
                dead.wait(60)
        timer.join()

    def start(self) -> None:
        """Starts it again, sometimes killing it before it is up; waits until it serves."""
        if self.random.random() < 0.2:
            self.daemon.start_process()
            time.sleep(self.random.random() * 1.5)  # the moment is the test's matter
            self.daemon.kill()
        began = time.monotonic()
        self.daemon.start()
        with self.daemon.client() as client:
            ready = lambda: {  # noqa: E731
                m.name for m in client.models() if m.state == MODEL_STATE_READY
            }
            wait(lambda: ready() >= self.promised - self.unsure, "models are not loaded again")
            for name in sorted(self.promised - self.unsure):
                again = client.embed([picture(1)], model=name)
                np.testing.assert_array_equal(again, self.vectors[name])
            self.back.append(time.monotonic() - began)
            loaded = {model.name for model in client.models(loaded_only=True)}
            assert loaded - self.unsure == self.promised - self.unsure
            self.promised, self.unsure = loaded, set()
            for request_id, job_id in self.submitted.items():
                if not job_id:  # whoever has not heard of it asks again
                    self._submit(client, request_id)

    def check(self) -> None:
        """Waits for all jobs and looks at everything that was told."""
        with self.daemon.client() as client:
            wait(lambda: all(job.state in ENDED for job in client.jobs()), "jobs do not end")
            jobs = {job.job_id: job for job in client.jobs()}
        assert sorted(jobs) == sorted(self.submitted.values())
        for request_id, job_id in self.submitted.items():
            assert jobs[job_id].request_id == request_id
        told: dict[str, list[bytes]] = {}
        for follower in self.followers:
            follower.join(60)
            assert not follower.is_alive(), "a stream does not end"
            job_id = follower.job_id
            assert told.setdefault(job_id, follower.events) == follower.events
        assert told.keys() == jobs.keys()
        for job_id, job in jobs.items():
            written = list(read_events(JobFolder(self.daemon.data_dir / "jobs" / job_id).events))
            assert_numbered(written)
            assert [JobEvent.FromString(raw).seq for raw in told[job_id]] == [
                event.seq for event in written
            ]
            # The daemon's death is none of a job's business.
            assert job.attempt <= 1
            if job.state == job_pb2.JOB_STATE_SUCCEEDED:
                assert_whole_curve(written, STEPS)

    def end(self) -> None:
        for follower in self.followers:
            follower.give_up()
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
    states = f"{len(chaos.submitted)} jobs, {sum(f.breaks for f in chaos.followers)} broken streams"
    print(
        f"{kills} kills, {states}; serving again after {statistics.median(chaos.back):.2f} s "
        f"(median), {max(chaos.back):.2f} s at most"
    )

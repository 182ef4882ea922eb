"""Subscribes to a job's events and reconnects whenever the daemon was killed."""

from __future__ import annotations

import random
import threading

import grpc

from multigrain.v1.job_pb2 import JobEvent, StreamEventsRequest
from multigrain.v1.job_pb2_grpc import JobServiceStub

OPTIONS = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]


class Subscriber(threading.Thread):
    """Collects a job's events, and resumes after the last one when the stream breaks.

    Args:
        address: of the daemon, the same after each restart.
        job_id: of the job.
        chance: makes it disconnect at random; None: it never does.

    Attributes:
        events: all events received, encoded.
        breaks: how often the stream broke.
    """

    def __init__(self, address: str, job_id: str, chance: random.Random | None) -> None:
        super().__init__(daemon=True)
        self._address = address
        self.job_id = job_id
        self._chance = chance
        self._stopped = threading.Event()
        self.events: list[bytes] = []
        self.breaks = 0

    def run(self) -> None:
        with grpc.insecure_channel(self._address, OPTIONS) as channel:
            call = JobServiceStub(channel).StreamEvents
            while not self._stopped.is_set():
                try:
                    if self._stream(call):
                        return
                except grpc.RpcError:
                    self.breaks += 1
                    self._stopped.wait(0.2)

    def _stream(self, call) -> bool:  # type: ignore[no-untyped-def]
        """Whether the stream was complete."""
        last = JobEvent.FromString(self.events[-1]).seq if self.events else 0
        left = self._chance.randint(1, 40) if self._chance else -1
        stream = call(StreamEventsRequest(job_id=self.job_id, after_seq=last, follow=True))
        for event in (event for batch in stream for event in batch.events):
            if event.HasField("heartbeat"):
                continue
            self.events.append(event.SerializeToString(deterministic=True))
            left -= 1
            if left == 0:
                stream.cancel()
                return False
        return True

    def stop(self) -> None:
        self._stopped.set()

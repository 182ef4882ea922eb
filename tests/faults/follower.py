"""Somebody who follows a job's events through everything that happens to the daemon."""

from __future__ import annotations

import random
import threading

import grpc

from multigrain.v1.job_pb2 import JobEvent, StreamEventsRequest
from multigrain.v1.job_pb2_grpc import JobServiceStub

ALONE = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]


class Follower(threading.Thread):
    """Collects events as they are sent, and goes on from its last seq after each break.

    Args:
        address: of the daemon, the same after each start.
        job_id: whose events.
        chance: makes it hang up by itself now and then; None: it never does.
    """

    def __init__(self, address: str, job_id: str, chance: random.Random | None) -> None:
        super().__init__(daemon=True)
        self._address = address
        self.job_id = job_id
        self._chance = chance
        self._given_up = threading.Event()
        self.events: list[bytes] = []
        self.breaks = 0

    def run(self) -> None:
        with grpc.insecure_channel(self._address, ALONE) as channel:
            follow = JobServiceStub(channel).StreamEvents
            while not self._given_up.is_set():
                try:
                    if self._follow(follow):
                        return
                except grpc.RpcError:
                    self.breaks += 1
                    self._given_up.wait(0.2)

    def _follow(self, follow) -> bool:  # type: ignore[no-untyped-def]
        """Whether the stream came to its end."""
        last = JobEvent.FromString(self.events[-1]).seq if self.events else 0
        left = self._chance.randint(1, 40) if self._chance else -1
        stream = follow(StreamEventsRequest(job_id=self.job_id, after_seq=last, follow=True))
        for event in (event for batch in stream for event in batch.events):
            if event.HasField("heartbeat"):
                continue
            self.events.append(event.SerializeToString(deterministic=True))
            left -= 1
            if left == 0:
                stream.cancel()
                return False
        return True

    def give_up(self) -> None:
        self._given_up.set()

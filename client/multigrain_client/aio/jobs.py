"""Watching and steering jobs."""

# ruff: noqa: ASYNC109 - a time-out here becomes the deadline that the server sees.

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing

from multigrain.v1.job_pb2 import Job, JobEvent
from multigrain_client.aio.rpcs import AsyncRpcs
from multigrain_client.cursor import EventCursor
from multigrain_client.errors import (
    DeadlineExceeded,
    MultigrainClientError,
    StreamGap,
)
from multigrain_client.losses import LossPoint
from multigrain_client.outcome import Deadline, is_terminal, raise_unless_succeeded
from multigrain_client.requests import (
    JobLike,
    event_kinds,
    job_id,
    list_jobs_request,
    state_name,
)

# Between two looks at a job whose stream has ended although the job has not.
LOOK_AGAIN_SECONDS = 0.5


class AsyncJobCalls(AsyncRpcs):
    """A job is named by a ``Job`` or by its id."""

    async def job(self, job: JobLike, *, timeout: float | None = None) -> Job:
        """As ``Client.job``."""
        return await self.GetJob(job_id=job_id(job), timeout=timeout)

    async def jobs(
        self,
        *,
        states: Iterable[str | int] = (),
        kinds: Iterable[str | int] = (),
        labels: Mapping[str, str] | None = None,
        name_contains: str = "",
        page_size: int = 0,
        timeout: float | None = None,
    ) -> AsyncIterator[Job]:
        """As ``Client.jobs``."""
        request = list_jobs_request(
            states=states,
            kinds=kinds,
            labels=labels,
            name_contains=name_contains,
            page_size=page_size,
        )
        while True:
            page = await self.ListJobs(request, timeout=timeout)
            for job in page.jobs:
                yield job
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def cancel(self, job: JobLike, *, timeout: float | None = None) -> Job:
        """As ``Client.cancel``."""
        return await self.CancelJob(job_id=job_id(job), timeout=timeout)

    async def resume(self, job: JobLike, *, timeout: float | None = None) -> Job:
        """As ``Client.resume``."""
        return await self.ResumeJob(job_id=job_id(job), timeout=timeout)

    async def delete_job(self, job: JobLike, *, timeout: float | None = None) -> None:
        """As ``Client.delete_job``."""
        await self.DeleteJob(job_id=job_id(job), timeout=timeout)

    def stream_events(
        self,
        job: JobLike,
        *,
        after_seq: int = 0,
        follow: bool = True,
        kinds: Iterable[str | int] | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[JobEvent]:
        """As ``Client.stream_events``."""
        cursor = EventCursor(
            job_id(job),
            after_seq=after_seq,
            kinds=event_kinds(kinds),
            follow=follow,
            policy=self._transport.policy,
        )
        return self._events(cursor, Deadline(timeout))

    async def _events(self, cursor: EventCursor, deadline: Deadline) -> AsyncIterator[JobEvent]:
        while True:
            try:
                answers = self.StreamEvents(cursor.request(), timeout=deadline.remaining)
                async with aclosing(answers) as batches:
                    async for batch in batches:
                        for event in batch.events:
                            if cursor.accept(event):
                                yield event
                return
            except StreamGap as gap:
                delay = cursor.on_gap(gap)
            except MultigrainClientError as error:
                if deadline.passed:
                    raise
                delay = cursor.on_error(error)
            await asyncio.sleep(deadline.within(delay))

    async def stream_losses(
        self,
        job: JobLike,
        *,
        after_seq: int = 0,
        follow: bool = True,
        timeout: float | None = None,
    ) -> AsyncIterator[LossPoint]:
        """As ``Client.stream_losses``."""
        async for event in self.stream_events(
            job, after_seq=after_seq, follow=follow, kinds=["loss"], timeout=timeout
        ):
            if event.HasField("loss"):
                yield LossPoint.from_event(event)

    async def wait(self, job: JobLike, timeout: float | None = None) -> Job:
        """As ``Client.wait``."""
        deadline = Deadline(timeout)
        try:
            while True:
                async for _ in self.stream_events(job, kinds=["state"], timeout=deadline.remaining):
                    pass
                latest = await self.job(job, timeout=deadline.remaining)
                if is_terminal(latest):
                    return raise_unless_succeeded(latest)
                if deadline.passed:
                    break
                await asyncio.sleep(deadline.within(LOOK_AGAIN_SECONDS))
        except DeadlineExceeded:
            if not deadline.passed:
                raise
        state = state_name(await self.job(job))
        raise DeadlineExceeded(f"job {job_id(job)} is still {state} after {timeout:g} s")

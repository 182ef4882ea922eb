"""Watching and steering jobs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing

from multigrain.v1.job_pb2 import Job, JobEvent
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
from multigrain_client.sync.rpcs import Rpcs

# Between two looks at a job whose stream has ended although the job has not.
LOOK_AGAIN_SECONDS = 0.5


class JobCalls(Rpcs):
    """A job is named by a ``Job`` or by its id."""

    def job(self, job: JobLike, *, timeout: float | None = None) -> Job:
        """The job as it stands now."""
        return self.GetJob(job_id=job_id(job), timeout=timeout)

    def jobs(
        self,
        *,
        states: Iterable[str | int] = (),
        kinds: Iterable[str | int] = (),
        labels: Mapping[str, str] | None = None,
        name_contains: str = "",
        page_size: int = 0,
        timeout: float | None = None,
    ) -> Iterator[Job]:
        """Jobs that match, newest first, fetched page by page as they are read.

        Args:
            states: such as "running"; empty = all.
            kinds: "training", "evaluation", "export"; empty = all.
            labels: all of which a job must carry.
            name_contains: part of the job's name, whatever the case.
            page_size: jobs of one page, 1..1000; 0 = the server's choice.
            timeout: seconds for each page.
        """
        request = list_jobs_request(
            states=states,
            kinds=kinds,
            labels=labels,
            name_contains=name_contains,
            page_size=page_size,
        )
        while True:
            page = self.ListJobs(request, timeout=timeout)
            yield from page.jobs
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def cancel(self, job: JobLike, *, timeout: float | None = None) -> Job:
        """Asks a job to end; a training saves a checkpoint first. Returns at once."""
        return self.CancelJob(job_id=job_id(job), timeout=timeout)

    def resume(self, job: JobLike, *, timeout: float | None = None) -> Job:
        """Runs a failed or cancelled job again, from its last good checkpoint."""
        return self.ResumeJob(job_id=job_id(job), timeout=timeout)

    def delete_job(self, job: JobLike, *, timeout: float | None = None) -> None:
        """Removes an ended job with its events and checkpoints."""
        self.DeleteJob(job_id=job_id(job), timeout=timeout)

    def stream_events(
        self,
        job: JobLike,
        *,
        after_seq: int = 0,
        follow: bool = True,
        kinds: Iterable[str | int] | None = None,
        timeout: float | None = None,
    ) -> Iterator[JobEvent]:
        """Every event after ``after_seq``, once and in order, until the job has ended.

        A broken connection is taken up again from the last event, with back-off, for as long
        as the retry policy's ``stream_patience`` says. Heartbeats are not yielded.

        Args:
            follow: False = only what has happened so far.
            kinds: "state", "loss", "evaluation", "checkpoint", "log", "artifact", "progress";
                None = all.
            timeout: seconds for the whole stream; None = as long as it takes.

        Raises:
            DeadlineExceeded: when the time-out has passed.
        """
        cursor = EventCursor(
            job_id(job),
            after_seq=after_seq,
            kinds=event_kinds(kinds),
            follow=follow,
            policy=self._transport.policy,
        )
        return self._events(cursor, Deadline(timeout))

    def _events(self, cursor: EventCursor, deadline: Deadline) -> Iterator[JobEvent]:
        while True:
            try:
                answers = self.StreamEvents(cursor.request(), timeout=deadline.remaining)
                with closing(answers) as batches:
                    for batch in batches:
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
            time.sleep(deadline.within(delay))

    def stream_losses(
        self,
        job: JobLike,
        *,
        after_seq: int = 0,
        follow: bool = True,
        timeout: float | None = None,
    ) -> Iterator[LossPoint]:
        """Every loss point of a training job, live; otherwise as ``stream_events``.

        ``(point.attempt, point.step)`` is a point's key. After a restart from a checkpoint the
        steps since then come again in a new attempt, and the newest attempt wins;
        ``latest_curve(points)`` makes one curve without double points.
        """
        for event in self.stream_events(
            job, after_seq=after_seq, follow=follow, kinds=["loss"], timeout=timeout
        ):
            if event.HasField("loss"):
                yield LossPoint.from_event(event)

    def wait(self, job: JobLike, timeout: float | None = None) -> Job:
        """Waits until the job has succeeded.

        Args:
            timeout: seconds; None = as long as it takes.

        Raises:
            JobFailed: with the reason; ``error.job`` has everything.
            JobCancelled: (a JobFailed) if it was cancelled.
            DeadlineExceeded: if it has not ended in time. It goes on.
        """
        deadline = Deadline(timeout)
        try:
            while True:
                for _ in self.stream_events(job, kinds=["state"], timeout=deadline.remaining):
                    pass
                latest = self.job(job, timeout=deadline.remaining)
                if is_terminal(latest):
                    return raise_unless_succeeded(latest)
                if deadline.passed:
                    break
                time.sleep(deadline.within(LOOK_AGAIN_SECONDS))
        except DeadlineExceeded:
            if not deadline.passed:
                raise
        state = state_name(self.job(job))
        raise DeadlineExceeded(f"job {job_id(job)} is still {state} after {timeout:g} s")

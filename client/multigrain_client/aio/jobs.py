"""Starting, watching and controlling jobs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from multigrain.v1.evaluation_pb2 import StartEvaluationRequest
from multigrain.v1.export_pb2 import StartExportRequest
from multigrain.v1.job_pb2 import Artifact, GetArtifactRequest, Job, JobEvent
from multigrain.v1.training_pb2 import (
    InspectDatasetRequest,
    InspectDatasetResponse,
    StartTrainingRequest,
)
from multigrain_client.aio.rpcs import AsyncRpcs
from multigrain_client.downloads import DownloadWriter
from multigrain_client.errors import (
    DeadlineExceeded,
    InvalidRequest,
    MultigrainClientError,
    NotFound,
    StreamGap,
)
from multigrain_client.jobs import is_terminal, loss_point, raise_unless_succeeded, state_name
from multigrain_client.loss_point import LossPoint
from multigrain_client.requests import (
    JobLike,
    SpecLike,
    event_kinds,
    fill_spec,
    job_id,
    list_artifacts_request,
    list_jobs_request,
    start_request,
    weights_source,
)
from multigrain_client.retry import Deadline, check_timeout
from multigrain_client.streaming import EventCursor

# Most ids in the message about an ambiguous beginning.
MOST_NAMED = 3

# Seconds between two looks at a job whose stream has ended although the job has not.
_POLL_SECONDS = 0.5


class AsyncJobCalls(AsyncRpcs):
    """A job is given as a ``Job`` or as its id."""

    async def start_training(
        self,
        spec: SpecLike = None,
        *,
        preset: str | None = None,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
        validate_only: bool = False,
        timeout: float | None = None,
        **overrides: Any,
    ) -> Job:
        """Starts a training job and returns at once, with the resolved spec in ``training``.

        ``await client.start_training(preset="digits-demo", **{"schedule.epochs": 3})``

        Args:
            spec: a dict, a TrainingSpec or the path of a YAML file; keys may be dotted.
            preset: name of the preset that provides every field that is not set. None: one for
                photographs, which the server chooses; ``preset_reason`` of the job says which.
            name: display name. Empty: the preset's name, or that of the folder.
            labels: key=value pairs to find the job by.
            request_id: idempotency key; None = a new UUID, which makes retries safe.
            validate_only: check and resolve the spec, start nothing, and return the job as it
                would be, without an id.
            timeout: seconds for the call (not for the training).
            overrides: single fields that override the spec, dotted or nested: ``seed=7``,
                ``schedule={"epochs": 3}``, ``**{"schedule.epochs": 3}``. Paths are on the server.

        Raises:
            InvalidRequest: naming every field that is unknown, ill-typed or out of range.
        """
        request = start_request(
            StartTrainingRequest,
            spec,
            {"preset": preset or None},
            overrides,
            name=name,
            labels=labels,
            request_id=request_id,
            validate_only=validate_only,
        )
        return await self.StartTraining(request, timeout=timeout)

    async def inspect_dataset(
        self,
        spec: SpecLike = None,
        *,
        preset: str | None = None,
        max_images: int = 0,
        max_seconds: float = 0.0,
        timeout: float | None = None,
        **overrides: Any,
    ) -> InspectDatasetResponse:
        """Looks at the images that a training run would use, and plans the run; starts nothing.

        ``await client.inspect_dataset(dataset={"train_path": "/data/photos"})``

        Args:
            spec, preset, overrides: as in ``start_training``.
            max_images: images that are decoded at most; 0 = 2,000.
            max_seconds: seconds after which no further image is decoded; 0 = 30.
            timeout: seconds for the call.

        Raises:
            InvalidRequest: as ``start_training``.
        """
        request = InspectDatasetRequest(max_images=max_images, max_seconds=max_seconds)
        fill_spec(request.spec, spec, {"preset": preset or None}, overrides)
        return await self.InspectDataset(request, timeout=timeout)

    async def evaluate(
        self,
        spec: SpecLike = None,
        *,
        job: JobLike | None = None,
        checkpoint_path: str | os.PathLike[str] | None = None,
        model: str | None = None,
        checkpoint: str | int | None = None,
        dataset_path: str | os.PathLike[str] | None = None,
        tasks: Iterable[str] | None = None,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
        validate_only: bool = False,
        timeout: float | None = None,
        **overrides: Any,
    ) -> Job:
        """Starts an evaluation job and returns at once; after ``wait`` the results are in
        ``job.metrics``.

        Args:
            spec: as in ``start_training``, of an EvaluationSpec.
            job: training job whose weights are evaluated; or
            checkpoint_path: a checkpoint on the server's disk; or
            model: a model of the registry.
            checkpoint: with ``job``: "last" (default), "best" or a step.
            dataset_path: folder of the images on the server: one subfolder per class or group, or
                the layout of a published benchmark.
            tasks: "classification", "copy_detection", "groups", or one of "holidays", "ukb",
                "copydays"; None = the first two.
            name, labels, request_id, validate_only, timeout, overrides: as in ``start_training``.
        """
        weights = weights_source(
            job=job, checkpoint_path=checkpoint_path, model=model, checkpoint=checkpoint
        )
        request = start_request(
            StartEvaluationRequest,
            spec,
            {"weights": weights, "dataset_path": dataset_path, "tasks": tasks},
            overrides,
            name=name,
            labels=labels,
            request_id=request_id,
            validate_only=validate_only,
        )
        return await self.StartEvaluation(request, timeout=timeout)

    async def export(
        self,
        spec: SpecLike = None,
        *,
        job: JobLike | None = None,
        checkpoint_path: str | os.PathLike[str] | None = None,
        checkpoint: str | int | None = None,
        model_name: str | None = None,
        formats: Iterable[str] | None = None,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
        validate_only: bool = False,
        timeout: float | None = None,
        **overrides: Any,
    ) -> Job:
        """Starts an export job and returns at once; after ``wait`` the new model bundle is in
        ``job.artifact``.

        Args:
            spec: as in ``start_training``, of an ExportSpec.
            job, checkpoint_path, checkpoint: the weights, as in ``evaluate``.
            model_name: name in the registry.
            formats: "mindir", "onnx", "air"; None = MINDIR and ONNX.
            name, labels, request_id, validate_only, timeout, overrides: as in ``start_training``.
        """
        weights = weights_source(job=job, checkpoint_path=checkpoint_path, checkpoint=checkpoint)
        request = start_request(
            StartExportRequest,
            spec,
            {"weights": weights, "model_name": model_name, "formats": formats},
            overrides,
            name=name,
            labels=labels,
            request_id=request_id,
            validate_only=validate_only,
        )
        return await self.StartExport(request, timeout=timeout)

    async def job(self, job: JobLike, *, timeout: float | None = None) -> Job:
        """The current state of a job."""
        return await self.GetJob(job_id=job_id(job), timeout=timeout)

    async def find_job(self, text: str, *, timeout: float | None = None) -> Job:
        """The job with this id, the only one whose id begins so, or with "last" the newest one.

        Args:
            text: "last", or an id or its beginning.
            timeout: seconds for each call.

        Raises:
            NotFound: if there is none.
            InvalidRequest: if it is the beginning of several ids.
        """
        last = text == "last"
        found = self.jobs(id_prefix="" if last else text, page_size=10, timeout=timeout)
        matching: list[Job] = []
        async for job in found:
            if last or job.job_id == text:
                return job
            if not job.job_id.startswith(text):
                break  # an older server does not know id_prefix
            matching.append(job)
            if len(matching) == MOST_NAMED:
                break
        if len(matching) == 1 and text:
            return matching[0]
        if last:
            raise NotFound("there are no jobs yet", kind="NOT_FOUND")
        if matching:
            ids = ", ".join(job.job_id for job in matching)
            raise InvalidRequest(f"job: several ids begin with {text!r}, such as {ids}")
        return await self.job(text, timeout=timeout)

    async def jobs(
        self,
        *,
        states: Iterable[str | int] = (),
        kinds: Iterable[str | int] = (),
        labels: Mapping[str, str] | None = None,
        name_contains: str = "",
        id_prefix: str = "",
        page_size: int = 0,
        timeout: float | None = None,
    ) -> AsyncIterator[Job]:
        """Jobs that match, newest first; pages are fetched on demand.

        Args:
            states: such as "running"; empty = all.
            kinds: "training", "evaluation", "export"; empty = all.
            labels: labels that a job must all have.
            name_contains: part of the job's name, case-insensitive.
            id_prefix: beginning of the job's id.
            page_size: jobs per page, 1..1000; 0 = the server's default.
            timeout: seconds for each page.
        """
        request = list_jobs_request(
            states=states,
            kinds=kinds,
            labels=labels,
            name_contains=name_contains,
            id_prefix=id_prefix,
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
        """Requests that a job stops; a training job saves a checkpoint first. Returns at once."""
        return await self.CancelJob(job_id=job_id(job), timeout=timeout)

    async def resume(self, job: JobLike, *, timeout: float | None = None) -> Job:
        """Restarts a failed or cancelled job from its last good checkpoint."""
        return await self.ResumeJob(job_id=job_id(job), timeout=timeout)

    async def delete_job(self, job: JobLike, *, timeout: float | None = None) -> None:
        """Deletes an ended job with its events and checkpoints."""
        await self.DeleteJob(job_id=job_id(job), timeout=timeout)

    async def artifacts(
        self,
        job: JobLike,
        *,
        kinds: Iterable[str | int] = (),
        timeout: float | None = None,
    ) -> list[Artifact]:
        """The files that a job has written so far.

        Args:
            job: the job.
            kinds: "result", "log", "checkpoint"; empty = all.
            timeout: seconds for the call.
        """
        request = list_artifacts_request(job, kinds)
        return list((await self.ListArtifacts(request, timeout=timeout)).artifacts)

    async def read_artifact(
        self, job: JobLike, name: str, *, offset: int = 0, timeout: float | None = None
    ) -> bytes:
        """The content of a file of a job, such as "results/metrics.json", from an offset on.

        Raises:
            NotFound: if there is no such file.
        """
        request = GetArtifactRequest(job_id=job_id(job), name=name, offset=offset)
        parts = [message.chunk async for message in self.GetArtifact(request, timeout=timeout)]
        return b"".join(parts)

    async def download_artifact(
        self,
        job: JobLike,
        name: str,
        path: str | os.PathLike[str],
        *,
        timeout: float | None = None,
    ) -> Path:
        """Writes a file of a job to ``path``, which appears when it is complete.

        Raises:
            NotFound: if there is no such file.
            ServerError: if the received file is damaged.
        """
        request = GetArtifactRequest(job_id=job_id(job), name=name)
        with DownloadWriter(path, name) as writer:
            async for message in self.GetArtifact(request, timeout=timeout):
                await asyncio.to_thread(writer.write, message)
            return await asyncio.to_thread(writer.finish)

    def stream_events(
        self,
        job: JobLike,
        *,
        after_seq: int = 0,
        follow: bool = True,
        kinds: Iterable[str | int] | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[JobEvent]:
        """Every event after ``after_seq``, once and in order, until the job has ended.

        Reconnects a broken stream after the last event, with back-off, for as long as the retry
        policy's ``stream_patience``. Heartbeats are not yielded.

        Args:
            job: the job.
            after_seq: only events with a greater seq.
            follow: False = only the events so far.
            kinds: "state", "loss", "evaluation", "checkpoint", "log", "artifact", "progress";
                None = all.
            timeout: seconds for the whole stream; None = no limit.

        Raises:
            DeadlineExceeded: when the timeout has passed.
        """
        cursor = EventCursor(
            job_id(job),
            after_seq=after_seq,
            kinds=event_kinds(kinds),
            follow=follow,
            policy=self._transport.policy,
        )
        return self._events(cursor, Deadline(check_timeout(timeout)))

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
        """Every loss point of a training job, live; otherwise as ``stream_events``.

        ``(point.attempt, point.step)`` identifies a point. After a restart from a checkpoint the
        steps after it are repeated in a new attempt, and the newest attempt wins;
        ``latest_curve(points)`` returns the curve without duplicate steps.
        """
        async for event in self.stream_events(
            job, after_seq=after_seq, follow=follow, kinds=["loss"], timeout=timeout
        ):
            if event.HasField("loss"):
                yield loss_point(event)

    async def wait(self, job: JobLike, timeout: float | None = None) -> Job:
        """Waits until the job has succeeded.

        Args:
            job: the job.
            timeout: seconds; None = no limit.

        Raises:
            JobFailed: if it failed; ``error.job`` has the details.
            JobCancelled: (a JobFailed) if it was cancelled.
            DeadlineExceeded: if it has not ended in time. The job continues.
        """
        deadline = Deadline(check_timeout(timeout))
        try:
            while True:
                async for _ in self.stream_events(job, kinds=["state"], timeout=deadline.remaining):
                    pass
                latest = await self.job(job, timeout=deadline.remaining)
                if is_terminal(latest):
                    return raise_unless_succeeded(latest)
                if deadline.passed:
                    break
                await asyncio.sleep(deadline.within(_POLL_SECONDS))
        except DeadlineExceeded:
            if not deadline.passed:
                raise
        state = state_name(await self.job(job))
        raise DeadlineExceeded(f"job {job_id(job)} is still {state} after {timeout:g} s")

"""Submitting jobs."""

# ruff: noqa: ASYNC109 - a time-out here becomes the deadline that the server sees.

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from multigrain.v1.job_pb2 import Job
from multigrain_client.aio.rpcs import AsyncRpcs
from multigrain_client.requests import (
    JobLike,
    SpecLike,
    start_evaluation_request,
    start_export_request,
    start_training_request,
    weights_source,
)


class AsyncStartCalls(AsyncRpcs):
    """Training, evaluation and export: each becomes a job."""

    async def start_training(
        self,
        spec: SpecLike = None,
        *,
        preset: str | None = None,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
        **overrides: Any,
    ) -> Job:
        """As ``Client.start_training``."""
        request = start_training_request(
            spec, overrides, preset=preset, name=name, labels=labels, request_id=request_id
        )
        return await self.StartTraining(request, timeout=timeout)

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
        timeout: float | None = None,
        **overrides: Any,
    ) -> Job:
        """As ``Client.evaluate``."""
        weights = weights_source(
            job=job, checkpoint_path=checkpoint_path, model=model, checkpoint=checkpoint
        )
        request = start_evaluation_request(
            spec,
            overrides,
            weights=weights,
            dataset_path=dataset_path,
            tasks=tasks,
            name=name,
            labels=labels,
            request_id=request_id,
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
        timeout: float | None = None,
        **overrides: Any,
    ) -> Job:
        """As ``Client.export``."""
        request = start_export_request(
            spec,
            overrides,
            weights=weights_source(job=job, checkpoint_path=checkpoint_path, checkpoint=checkpoint),
            model_name=model_name,
            formats=formats,
            name=name,
            labels=labels,
            request_id=request_id,
        )
        return await self.StartExport(request, timeout=timeout)

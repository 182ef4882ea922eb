"""Submitting jobs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from multigrain.v1.job_pb2 import Job
from multigrain_client.requests import (
    JobLike,
    SpecLike,
    start_evaluation_request,
    start_export_request,
    start_training_request,
    weights_source,
)
from multigrain_client.sync.rpcs import Rpcs


class StartCalls(Rpcs):
    """Training, evaluation and export: each becomes a job."""

    def start_training(
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
        """Starts a training job and returns at once, with the resolved spec in ``training``.

        ``client.start_training(preset="digits-demo", **{"schedule.epochs": 3})``

        Args:
            spec: a dict, a TrainingSpec or the path of a YAML file; keys may be dotted.
            preset: name of the preset that everything not given is taken from.
            name: for people. Empty: the preset's name.
            labels: to find the job by.
            request_id: idempotency key; None = a new UUID, which makes retries safe.
            timeout: seconds for the call (not for the training).
            overrides: single fields over the spec, dotted or nested: ``seed=7``,
                ``schedule={"epochs": 3}``, ``**{"schedule.epochs": 3}``. Paths are the server's.

        Raises:
            InvalidRequest: naming every field that is unknown, ill-typed or out of its range.
        """
        request = start_training_request(
            spec, overrides, preset=preset, name=name, labels=labels, request_id=request_id
        )
        return self.StartTraining(request, timeout=timeout)

    def evaluate(
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
        """Starts an evaluation job and returns at once; after ``wait`` the figures are in
        ``job.metrics``.

        Args:
            spec: as in ``start_training``, of an EvaluationSpec.
            job: training job whose weights are evaluated; or
            checkpoint_path: a checkpoint on the server's disk; or
            model: a model of the registry.
            checkpoint: with ``job``: "last" (default), "best" or a step.
            dataset_path: folder of the images, on the server: one sub-folder a class or group,
                or a published benchmark's own layout.
            tasks: "classification", "copy_detection", "groups", or one of "holidays", "ukb",
                "copydays"; None = the first two.
            overrides: further fields, as in ``start_training``.
        """
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
        return self.StartEvaluation(request, timeout=timeout)

    def export(
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
        """Starts an export job and returns at once; after ``wait`` the bundle written is named
        in ``job.artifact``.

        Args:
            spec: as in ``start_training``, of an ExportSpec.
            job, checkpoint_path, checkpoint: the weights, as in ``evaluate``.
            model_name: name in the registry.
            formats: "mindir", "onnx", "air"; None = MINDIR and ONNX.
            overrides: further fields, as in ``start_training``.
        """
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
        return self.StartExport(request, timeout=timeout)

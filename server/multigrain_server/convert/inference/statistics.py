"""Counts and times of a model as messages."""

from __future__ import annotations

from multigrain.v1.inference import model_pb2
from multigrain_server.models.reference import ModelVersion
from multigrain_server.serving.statistics import Duration, ModelStatistics


def statistics_message(
    version: ModelVersion, statistics: ModelStatistics
) -> model_pb2.ModelStatistics:
    """Everything that is counted of one loaded version."""
    return model_pb2.ModelStatistics(
        name=version.name,
        version=str(version.version),
        last_inference=statistics.last_ms,
        inference_count=statistics.images,
        execution_count=statistics.executions,
        inference_stats=model_pb2.InferStatistics(
            success=_duration(statistics.success),
            fail=_duration(statistics.fail),
            queue=_duration(statistics.queue),
            compute_input=_duration(statistics.prepare),
            compute_infer=_duration(statistics.infer),
            compute_output=_duration(statistics.encode),
        ),
        batch_stats=[
            model_pb2.InferBatchStatistics(
                batch_size=size,
                compute_input=_duration(times.prepare),
                compute_infer=_duration(times.infer),
            )
            for size, times in sorted(statistics.batches.items())
        ],
    )


def _duration(duration: Duration) -> model_pb2.StatisticDuration:
    return model_pb2.StatisticDuration(count=duration.count, ns=duration.ns)

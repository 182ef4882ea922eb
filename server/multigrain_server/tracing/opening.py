"""Turns tracing on, where that is wanted."""

from __future__ import annotations

from multigrain_server.tracing.call import Tracing
from multigrain_server.tracing.config import TracingConfig


def open_tracing(config: TracingConfig, version: str) -> Tracing | None:
    """Loads OpenTelemetry if there is a collector to send to; else None, and nothing is loaded."""
    if not config.endpoint:
        return None
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from multigrain_server.tracing.spans import Spans

    plain = config.endpoint.startswith("http://")
    exporter = OTLPSpanExporter(endpoint=config.endpoint, insecure=plain)
    return Spans(
        BatchSpanProcessor(exporter), config.sample_ratio, version, give_up=exporter.shutdown
    )

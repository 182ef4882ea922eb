"""What an operator can set about traces."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

from pydantic import AfterValidator, Field

from multigrain.specs.base import Spec
from multigrain_server.tracing.call import Tracing


def _endpoint(text: str) -> str:
    if text and not text.startswith(("http://", "https://")):
        raise ValueError(
            f'"{text}" is not a collector; write http://HOST:4317, or https:// for TLS'
        )
    if text and not _installed():
        raise ValueError("needs OpenTelemetry: pip install 'multigrain[tracing]'")
    return text


def _installed() -> bool:
    try:
        return find_spec("opentelemetry.exporter.otlp.proto.grpc") is not None
    except ModuleNotFoundError:  # of a package above it
        return False


class TracingConfig(Spec):
    """Spans of calls, sent over OTLP. What else an exporter takes, it reads from the standard
    ``OTEL_EXPORTER_OTLP_*`` variables."""

    endpoint: Annotated[str, AfterValidator(_endpoint)] = Field(
        "",
        description="Collector that takes spans over OTLP/gRPC, such as http://127.0.0.1:4317; "
        "empty = no tracing.",
    )
    sample_ratio: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of the traces that begin here which are kept. Of those that begin at a "
        "caller, the caller decides.",
    )


# MERGED: Turns tracing on, where that is wanted.


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

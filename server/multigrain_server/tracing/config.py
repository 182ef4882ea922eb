"""Configuration of tracing."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from multigrain.addresses import is_this_machine
from multigrain.specs.base import Spec
from multigrain_server.tracing.call import Tracing


def _endpoint(text: str) -> str:
    if text and not _is_url(text):
        raise ValueError(
            f"{text!r} is not a collector URL; write http://HOST:4317, or https:// for TLS"
        )
    if text and not _installed():
        raise ValueError("needs OpenTelemetry: pip install 'multigrain[tracing]'")
    return text


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0


def _installed() -> bool:
    try:
        return find_spec("opentelemetry.exporter.otlp.proto.grpc") is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


class TracingConfig(Spec):
    """Export of spans over OTLP.

    The exporter reads other settings from the standard ``OTEL_EXPORTER_OTLP_*`` variables.
    """

    endpoint: Annotated[str, AfterValidator(_endpoint)] = Field(
        "",
        description="URL of the collector that receives spans over OTLP/gRPC, such as "
        "http://127.0.0.1:4317; empty = no tracing.",
    )
    sample_ratio: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of the traces started by the daemon that is kept, 0 to 1. Whether to "
        "keep a trace that a client started is the client's decision.",
    )


def open_tracing(config: TracingConfig, version: str) -> Tracing | None:
    """Starts the exporter; None without an endpoint, and then OpenTelemetry is not imported.

    Args:
        config: endpoint and sampling.
        version: version of this service, an attribute of every span.
    """
    if not config.endpoint:
        return None
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from multigrain_server.tracing.spans import Spans

    plain = config.endpoint.startswith("http://")
    # gRPC would have a proxy of the environment connect to this machine.
    local = is_this_machine(urlsplit(config.endpoint).hostname or "")
    exporter = OTLPSpanExporter(
        endpoint=config.endpoint,
        insecure=plain,
        # Its annotation leaves out options with numbers.
        channel_options=(("grpc.enable_http_proxy", 0),) if local else None,  # type: ignore[arg-type]
    )
    return Spans(
        BatchSpanProcessor(exporter), config.sample_ratio, version, abort=exporter.shutdown
    )

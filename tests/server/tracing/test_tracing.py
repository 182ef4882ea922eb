"""A trace from a client to the engine and into a collector."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import grpc.aio
import pytest
from opentelemetry.sdk.trace import TracerProvider

from multigrain.v1.job_pb2 import ListJobsRequest
from multigrain.v1.job_pb2_grpc import JobServiceStub
from multigrain_client import AsyncClient, Client
from multigrain_server.app import App
from multigrain_server.config import ServerConfig
from multigrain_server.settings_sources import ConfigError, parse
from multigrain_server.tracing.config import TracingConfig, open_tracing
from tests.engine.bundles import write_bundle
from tests.engine.pictures import picture
from tests.server.grpc.serving import serving
from tests.server.tracing.collector import Collector


@pytest.mark.process
async def test_trace_from_client_to_batch_reaches_a_collector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # not for this machine
    write_bundle(tmp_path / "models")
    images = [picture(number) for number in range(3)]
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    with Collector() as collector:
        tracing = open_tracing(TracingConfig(endpoint=collector.endpoint, sample_ratio=0), "1")
        assert tracing is not None
        async with serving(tmp_path, tracing=tracing) as s:
            await s.manager.load("tiny")

            def from_a_thread() -> str:
                client = Client(s.address, batch_size=1)
                with tracer.start_as_current_span("mine") as span, client:
                    client.embed(images)  # three calls, made by threads
                return f"{span.get_span_context().trace_id:032x}"

            mine = await asyncio.to_thread(from_a_thread)
            async with AsyncClient(s.address) as client:
                with tracer.start_as_current_span("other") as span:
                    await client.classify(images[0])
                    other = f"{span.get_span_context().trace_id:032x}"
                await client.embed(images)  # in no trace: not kept
        await asyncio.to_thread(tracing.close)
        call = collector.wait_for("multigrain.v1.EmbeddingService/Embed")
        calls = collector.named("multigrain.v1.EmbeddingService/Embed")
        assert [one.trace_id.hex() for one in calls] == [mine] * 3
        classify = collector.wait_for("multigrain.v1.EmbeddingService/Classify")
        assert classify.trace_id.hex() == other
        infers = {span.parent_span_id: span for span in collector.named("infer")}
        infer = infers[call.span_id]
        batches = {span.span_id: span for span in collector.named("engine batch")}
        assert infer.links
        assert {link.span_id for link in infer.links} <= batches.keys()
        leaders = {link.span_id for span in batches.values() for link in span.links}
        assert leaders <= {one.span_id for one in (*calls, classify)}
        assert {span.name for span in collector.named("decode")} == {"decode"}


async def test_remaining_spans_are_exported_at_shutdown(tmp_path: Path) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    with Collector() as collector:
        config = ServerConfig(
            data_dir=tmp_path / "data",
            listen="127.0.0.1:0",
            http_listen="",
            tracing=TracingConfig(endpoint=collector.endpoint),
        )
        app = App(config)
        await app.start()
        async with grpc.aio.insecure_channel(app.address) as channel:
            metadata = (("traceparent", f"00-{trace}-b7ad6b7169203331-01"),)
            await JobServiceStub(channel).ListJobs(ListJobsRequest(), metadata=metadata)
        await app.stop()
        await app.close_connections()
        (span,) = collector.named("multigrain.v1.JobService/ListJobs")
    assert span.trace_id.hex() == trace


def test_opentelemetry_is_not_imported_without_an_endpoint() -> None:
    code = (
        "import sys; import multigrain_server.main, multigrain_client;"
        "from multigrain_server.tracing.config import TracingConfig;"
        "from multigrain_server.tracing.config import open_tracing;"
        "from multigrain_client.channel import trace_context;"
        "assert open_tracing(TracingConfig(), '') is None;"
        "assert trace_context() == ();"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_invalid_endpoint_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tracing.endpoint.*http://HOST:4317"):
        parse(["--tracing-endpoint", "127.0.0.1:4317"], {})


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multigrain_server.tracing.config._installed", lambda: False)
    with pytest.raises(ConfigError, match=r"multigrain\[tracing\]"):
        parse(["--tracing-endpoint", "http://127.0.0.1:4317"], {})

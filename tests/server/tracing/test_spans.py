"""Spans, without a collector."""

from __future__ import annotations

import threading

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from multigrain.engine.protocol import Result
from multigrain_server.tracing.spans import CallSpan, Spans

EMBED = "/multigrain.v1.EmbeddingService/Embed"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = ("traceparent", f"00-{TRACE}-{PARENT}-01")
UNSAMPLED = ("traceparent", f"00-{TRACE}-{PARENT}-00")


class Made:
    """Spans with an exporter that keeps them in memory."""

    def __init__(self, sample_ratio: float = 1.0) -> None:
        self._memory = InMemorySpanExporter()
        self.spans = Spans(SimpleSpanProcessor(self._memory), sample_ratio, "1")

    def call(self, *metadata: tuple[str, str | bytes]) -> CallSpan:
        call = self.spans.begin(EMBED, metadata, "id")
        assert call is not None
        return call

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._memory.get_finished_spans() if span.name == name]


def result(compute_ns: int = 5_000_000, batch_items: int = 2) -> Result:
    return Result(
        id=1,
        decode_ns=2_000_000,
        queue_ns=1_000_000,
        compute_ns=compute_ns,
        batch_items=batch_items,
    )


def test_a_call_continues_the_trace_of_its_client() -> None:
    made = Made()
    made.call(SAMPLED).end("OK", "")
    (span,) = made.named("multigrain.v1.EmbeddingService/Embed")
    assert f"{span.context.trace_id:032x}" == TRACE
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.kind is SpanKind.SERVER
    assert span.attributes["rpc.grpc.status_code"] == "OK"
    assert span.status.status_code is StatusCode.UNSET


def test_the_client_decides_whether_its_trace_is_sampled() -> None:
    assert Made(1.0).spans.begin(EMBED, [UNSAMPLED], "id") is None
    assert Made(0.0).spans.begin(EMBED, [SAMPLED], "id") is not None


def test_a_share_of_new_traces_is_sampled() -> None:
    assert Made(0.0).spans.begin(EMBED, [], "id") is None
    kept = sum(Made(0.5).spans.begin(EMBED, [], "id") is not None for _ in range(100))
    assert 0 < kept < 100


@pytest.mark.parametrize("value", ["", "x", f"00-{TRACE}-{'0' * 16}-01", "\udc80", b"\xff"])
def test_an_invalid_context_is_ignored(value: str | bytes) -> None:
    made = Made()
    made.call(("traceparent", value), ("tracestate-bin", b"\xff")).end("OK", "")
    (span,) = made.named("multigrain.v1.EmbeddingService/Embed")
    assert span.parent is None


def test_health_checks_have_no_spans() -> None:
    assert Made().spans.begin("/grpc.health.v1.Health/Check", [SAMPLED], "id") is None


def test_only_server_errors_set_the_error_status() -> None:
    made = Made()
    for code in ("INTERNAL", "INVALID_ARGUMENT"):
        made.call().end(code, "because")
    internal, invalid = made.named("multigrain.v1.EmbeddingService/Embed")
    assert internal.status.status_code is StatusCode.ERROR
    assert internal.status.description == "because"
    assert invalid.status.status_code is StatusCode.UNSET


def test_stages_are_end_to_end_children_of_the_call() -> None:
    made = Made()
    call = made.call(SAMPLED)
    call.computed("m@1", [result(), result()])
    call.end("OK", "")
    (whole,) = made.named("multigrain.v1.EmbeddingService/Embed")
    decode, queue, infer = (made.named(name)[0] for name in ("decode", "queue", "infer"))
    for stage, milliseconds in ((decode, 2), (queue, 1), (infer, 5)):
        assert stage.parent == whole.context
        assert stage.end_time - stage.start_time == milliseconds * 1_000_000
        assert stage.attributes["multigrain.images"] == 2
    assert decode.end_time == queue.start_time
    assert queue.end_time == infer.start_time


def test_calls_of_one_batch_link_to_it() -> None:
    # No new trace is sampled, but the batch of a sampled call must be.
    made = Made(0.0)
    first, second = made.call(SAMPLED), made.call(SAMPLED)
    first.computed("m@1", [result()])
    second.computed("m@1", [result(), result(compute_ns=7_000_000, batch_items=1)])
    one, other = made.named("engine batch")
    assert one.parent is None
    assert one.attributes["multigrain.batch_items"] == 2
    assert one.end_time - one.start_time == 5_000_000
    assert f"{one.links[0].context.trace_id:032x}" == TRACE
    infers = [{link.context.span_id for link in span.links} for span in made.named("infer")]
    assert infers == [{one.context.span_id}, {one.context.span_id, other.context.span_id}]


def test_images_without_a_batch_have_no_spans() -> None:
    made = Made()
    made.call().computed("m@1", [result(batch_items=0)])
    assert not made.named("infer") + made.named("engine batch")


def test_remembered_batches_are_bounded() -> None:
    made = Made()
    call = made.call()
    for number in range(1000):
        call.computed("m@1", [result(compute_ns=1_000_000 + number)])
    assert len(made.spans._batches._known) <= 256


def test_close_does_not_wait_for_an_unreachable_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(SpanProcessor):
        """Exports until it is aborted."""

        aborted = threading.Event()
        ended = False

        def shutdown(self) -> None:
            self.ended = self.aborted.wait(60)

    monkeypatch.setattr("multigrain_server.tracing.spans._CLOSE_SECONDS", 0.05)
    stuck = Stuck()
    Spans(stuck, 1.0, "1", abort=stuck.aborted.set).close()
    assert stuck.ended

"""OpenTelemetry spans, from the W3C context of the client to the batch of the engine."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBasedTraceIdRatio, Sampler
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    Tracer,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from multigrain.engine.protocol import Result

_CONTEXT = TraceContextTextMapPropagator()
# Probes come every few seconds and say nothing.
_UNTRACED = ("/grpc.health.", "/grpc.reflection.")
# Statuses that are server errors by OpenTelemetry's semantic conventions.
_SERVER_ERRORS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)
_BATCHES = 256
# Time to export the remaining spans: an unreachable collector must not delay shutdown.
_CLOSE_SECONDS = 2.0

# A batch: model, time of the forward pass in ns, number of images. All images of a batch report the
# same. Two batches with the same values would be taken for one, which is rare and costs one link.
_Batch = tuple[str, int, int]


class Spans:
    """Creates a span for each sampled call.

    Args:
        processor: receives finished spans.
        sample_ratio: share of the traces started here that is kept.
        version: version of this service.
        abort: makes the processor stop exporting at once.
    """

    def __init__(
        self,
        processor: SpanProcessor,
        sample_ratio: float,
        version: str,
        abort: Callable[[], None] = lambda: None,
    ) -> None:
        self._processor = processor
        self._abort = abort
        resource = Resource.create({"service.name": "multigrain", "service.version": version})

        def tracer(sampler: Sampler) -> Tracer:
            provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
            provider.add_span_processor(processor)
            return provider.get_tracer("multigrain_server", version)

        self._tracer = tracer(ParentBasedTraceIdRatio(sample_ratio))
        self._batches = _Batches(tracer(ALWAYS_ON))

    def begin(
        self, method: str, metadata: Sequence[tuple[str, str | bytes]], request_id: str
    ) -> CallSpan | None:
        """See ``Tracing``."""
        if method.startswith(_UNTRACED):
            return None
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        service, _, name = method.lstrip("/").partition("/")
        span = self._tracer.start_span(
            f"{service}/{name}",
            _CONTEXT.extract(carrier, Context()),
            SpanKind.SERVER,
            {
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": name,
                "multigrain.request_id": request_id,
            },
        )
        return CallSpan(self._tracer, span, self._batches) if span.is_recording() else None

    def close(self) -> None:
        """Exports the remaining spans, for at most two seconds."""
        # The processor itself would wait for 30 seconds.
        timer = threading.Timer(_CLOSE_SECONDS, self._abort)
        timer.start()
        try:
            self._processor.shutdown()
        finally:
            timer.cancel()


class CallSpan:
    """The span of a call and its child spans."""

    def __init__(self, tracer: Tracer, span: Span, batches: _Batches) -> None:
        self._tracer = tracer
        self._span = span
        self._batches = batches

    def computed(self, model: str, results: Sequence[Result]) -> None:
        """Adds the spans ``decode``, ``queue`` and ``infer``.

        Each has the time of the slowest image. They are laid end to end before now, because images
        report durations and no times. ``infer`` links to batches, which other calls share.
        """
        done = [result for result in results if result.batch_items]
        if not done:
            return
        end = time.time_ns()
        passes = {(model, result.compute_ns, result.batch_items) for result in done}
        ours = self._span.get_span_context()
        links = [Link(self._batches.span_of(batch, end, ours)) for batch in sorted(passes)]
        for name, nanoseconds in (
            ("infer", max(result.compute_ns for result in done)),
            ("queue", max(result.queue_ns for result in done)),
            ("decode", max(result.decode_ns for result in done)),
        ):
            start = end - nanoseconds
            span = self._tracer.start_span(
                name,
                set_span_in_context(self._span),
                attributes={"multigrain.model": model, "multigrain.images": len(results)},
                links=links if name == "infer" else None,
                start_time=start,
            )
            span.end(end)
            end = start

    def end(self, code: str, reason: str) -> None:
        """See ``CallTrace``."""
        self._span.set_attribute("rpc.grpc.status_code", code)
        if code in _SERVER_ERRORS:
            self._span.set_status(StatusCode.ERROR, reason)
        self._span.end()


class _Batches:
    """Spans of the latest batches.

    Args:
        tracer: samples every span: batches get one only for calls that are sampled.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._known: OrderedDict[_Batch, SpanContext] = OrderedDict()

    def span_of(self, batch: _Batch, end: int, call: SpanContext) -> SpanContext:
        """The span of a batch, which is a trace of its own, created for its first traced call.

        Args:
            batch: the batch.
            end: Unix time of its end in ns.
            call: the span of that call, to link to.
        """
        known = self._known.get(batch)
        if known is not None:
            return known
        model, nanoseconds, items = batch
        span = self._tracer.start_span(
            "engine batch",
            Context(),
            attributes={"multigrain.model": model, "multigrain.batch_items": items},
            links=[Link(call)],
            start_time=end - nanoseconds,
        )
        span.end(end)
        self._known[batch] = span.get_span_context()
        while len(self._known) > _BATCHES:
            self._known.popitem(last=False)
        return span.get_span_context()

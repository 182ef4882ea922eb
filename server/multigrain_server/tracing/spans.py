"""Spans of OpenTelemetry, from the caller's W3C context to the engine's batch."""

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
# Probes come every few seconds for ever, and say nothing.
_UNTRACED = ("/grpc.health.", "/grpc.reflection.")
# A call's end is worth an error where the server is to blame, as OpenTelemetry's conventions say.
_FAULTS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)
_BATCHES = 256
# The rest of what is to be sent may take so long; a collector that is gone holds up no stop.
_CLOSE_SECONDS = 2.0

# Of one forward pass: the model, how long it took in ns, and its images. All of its images tell the
# same. Two passes that do would be taken for one, which is rare, and costs a link.
_Batch = tuple[str, int, int]


class Spans:
    """Makes a span of each call that is sampled.

    Args:
        processor: where finished spans go.
        sample_ratio: share that is kept of the traces that begin here.
        version: of this service.
        give_up: makes the processor's sending end at once.
    """

    def __init__(
        self,
        processor: SpanProcessor,
        sample_ratio: float,
        version: str,
        give_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._processor = processor
        self._give_up = give_up
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
        """Sends what is left, if that can be done soon."""
        # The processor itself would wait for half a minute.
        impatient = threading.Timer(_CLOSE_SECONDS, self._give_up)
        impatient.start()
        try:
            self._processor.shutdown()
        finally:
            impatient.cancel()


class CallSpan:
    """The span of one call, and those of what is done for it."""

    def __init__(self, tracer: Tracer, span: Span, batches: _Batches) -> None:
        self._tracer = tracer
        self._span = span
        self._batches = batches

    def computed(self, model: str, results: Sequence[Result]) -> None:
        """Spans ``decode``, ``queue`` and ``infer``: of each, the slowest image's, laid end to
        end before now, as images tell how long they took and not when. ``infer`` links to the
        forward passes, which are shared with other calls."""
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
        if code in _FAULTS:
            self._span.set_status(StatusCode.ERROR, reason)
        self._span.end()


class _Batches:
    """Spans of the newest forward passes.

    Args:
        tracer: keeps every span: that of a pass is made for a call that is kept.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._known: OrderedDict[_Batch, SpanContext] = OrderedDict()

    def span_of(self, batch: _Batch, end: int, call: SpanContext) -> SpanContext:
        """The span of a pass: a trace of its own, made by the first of its calls that is traced,
        and linked with that.

        Args:
            batch: which.
            end: when it ended, in ns of Unix time.
            call: the span that asks.
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

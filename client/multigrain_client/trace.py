"""Passes the caller's trace on, where it has one."""

from __future__ import annotations

import sys


def trace_context() -> tuple[tuple[str, str], ...]:
    """Metadata of the current OpenTelemetry context (W3C ``traceparent``, ``tracestate`` and
    ``baggage``, as the program's propagators have it); nothing, and no import, in a program that
    does not use OpenTelemetry."""
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple((key.lower(), value) for key, value in carrier.items())

"""Series of the gRPC address's certificate."""

from __future__ import annotations

import math
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge


def register_certificate(registry: CollectorRegistry, expiry: Callable[[], float] | None) -> None:
    """``expiry``: Unix time at which the certificate in use ends; None = no TLS."""
    Gauge(
        "multigrain_certificate_expiry_timestamp_seconds",
        "Unix time at which the certificate of the gRPC address ends; +Inf without TLS.",
        registry=registry,
    ).set_function(expiry or (lambda: math.inf))

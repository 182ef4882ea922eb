"""The answer of a health check."""

from __future__ import annotations

from enum import IntEnum


class HealthStatus(IntEnum):
    """``grpc.health.v1.HealthCheckResponse.ServingStatus``."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3

    @property
    def serving(self) -> bool:
        return self is HealthStatus.SERVING

"""OpenTelemetry spans of calls. Where tracing is off, OpenTelemetry is not imported."""

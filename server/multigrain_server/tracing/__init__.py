"""OpenTelemetry spans of calls; nothing of it is loaded where it is off."""

"""Renders each generated block, by name."""

from __future__ import annotations

from collections.abc import Callable

from tools.docs import (
    access,
    benchmarks,
    command_line,
    configuration,
    errors,
    grpc_api,
    metrics,
    openapi,
    presets,
    specifications,
)

SUBJECTS: dict[str, Callable[[], str]] = {
    "access": access.render,
    "cli.commands": command_line.render_commands,
    "cli.options": command_line.render_options,
    "cli.server": command_line.render_server,
    "cli.shared": command_line.render_shared,
    "configuration": configuration.render,
    "errors.exceptions": errors.render_exceptions,
    "errors.kinds": errors.render_kinds,
    "grpc.messages": grpc_api.render_messages,
    "grpc.services": grpc_api.render_services,
    "http.routes": openapi.render_routes,
    "metrics": metrics.render,
    "presets.files": presets.render_files,
    "presets.table": presets.render_table,
    "spec.evaluation": specifications.evaluation,
    "spec.export": specifications.export,
    "spec.training": specifications.training,
    **benchmarks.subjects(),
}

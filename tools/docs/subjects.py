"""Renders each generated block, by name."""

from __future__ import annotations

from collections.abc import Callable

from tools.docs import configuration, errors, metrics

SUBJECTS: dict[str, Callable[[], str]] = {
    "configuration": configuration.render,
    "metrics": metrics.render,
    "errors.kinds": errors.render_kinds,
    "errors.exceptions": errors.render_exceptions,
}

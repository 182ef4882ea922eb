"""Keys of the daemon's configuration."""

from __future__ import annotations

import itertools
from pathlib import Path

from tools.docs.limits import default_text, limits_text
from tools.docs.markdown import code, prose, table
from tools.docs.product import Option, options


def render() -> str:
    """A table for each section: key, default, limits, meaning."""
    parts = []
    for section, group in itertools.groupby(options(), key=lambda option: option.path[:-1]):
        name = ".".join(section)
        parts.append(f"### {code(name)}" if name else "### Top level")
        parts.append(
            table(
                ["key", "default", "limits", "meaning"],
                [
                    [
                        code(option.key),
                        _default(option),
                        limits_text(option.info),
                        prose(option.info.description or ""),
                    ]
                    for option in group
                ],
            )
        )
    return "\n\n".join(parts)


def _default(option: Option) -> str:
    default = option.info.get_default(call_default_factory=True)
    if isinstance(default, Path):
        default = default.name  # relative to the working folder
    return default_text(default)

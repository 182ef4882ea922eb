"""Keys of the daemon's configuration."""

from __future__ import annotations

import itertools

from tools.docs.limits import entry
from tools.docs.markdown import code, prose, table
from tools.docs.product import options


def render() -> str:
    """A table for each section."""
    parts = []
    for section, group in itertools.groupby(options(), key=lambda option: option.path[:-1]):
        name = ".".join(section)
        parts.append(f"## {code(name)}" if name else "## Top level")
        rows = [
            [entry(option.key, option.info), prose(option.info.description or "")]
            for option in group
        ]
        parts.append(table(["key", "meaning"], rows))
    return "\n\n".join(parts)

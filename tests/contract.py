"""Every service of the contract, as the generated modules in ``multigrain/v1`` have them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import multigrain

_ROOT = Path(multigrain.__file__).parent


def services(folder: str = "v1") -> dict[str, Any]:
    """Descriptor of each service below ``multigrain/``, by its full name."""
    found = {}
    for path in sorted(_ROOT.glob(f"{folder}/*_pb2.py")):
        name = ".".join(("multigrain", *path.relative_to(_ROOT).with_suffix("").parts))
        for service in import_module(name).DESCRIPTOR.services_by_name.values():
            found[service.full_name] = service
    return found


def calls(folder: str = "v1") -> dict[str, Any]:
    """Descriptor of each of their calls, by its path in gRPC."""
    return {
        f"/{name}/{rpc.name}": rpc
        for name, service in services(folder).items()
        for rpc in service.methods
    }

"""Entry point of ``multigrain-server`` and ``python -m multigrain_server``."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

from multigrain.streams import reserve_descriptors
from multigrain_server import early_signals

# Packages of the extra `serve` that the daemon imports only once it is ready.
_IMPORTED_LATE = ("aiohttp", "jinja2")


def main() -> int:
    """Runs the daemon's command line and returns its exit code; 1 if the extra `serve` is missing.

    pip installs the command with the client alone, so the daemon's dependencies may be missing.
    """
    early_signals.hold()  # before the imports, which take most of the time of a start
    _leave_working_folder()
    reserve_descriptors()  # before gRPC, which opens files when it is imported
    try:
        from multigrain_server.main import main as run
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "multigrain", "multigrain_server"):
            raise
        return _missing(package)
    for package in _IMPORTED_LATE:
        if find_spec(package) is None:
            return _missing(package)
    return run()


def _leave_working_folder() -> None:
    """From here on imports nothing from the working folder, where others may be able to write.

    ``python -m`` and empty entries of PYTHONPATH put it into the search path. What Python itself
    has imported before can only be prevented by ``python -P`` or the command multigrain-server.
    """
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = {entry for entry in entries if os.path.isabs(entry)}
    unwanted = {os.path.abspath(entry) for entry in entries} - kept
    sys.path[:] = [entry for entry in sys.path if os.path.isabs(entry) and entry not in unwanted]


def _missing(package: str) -> int:
    print(
        f"multigrain-server: needs {package}, which is not installed: "
        "pip install 'multigrain[serve]' (serves models) or 'multigrain[server]' (trains as well)",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())

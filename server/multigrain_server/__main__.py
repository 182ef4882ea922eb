"""Entry point of ``multigrain-server`` and ``python -m multigrain_server``."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the daemon's command line and returns its exit code; 1 if the extra `server` is missing.

    pip installs the command with the client alone, so the daemon's dependencies may be missing.
    """
    try:
        from multigrain_server.main import main as run
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "multigrain", "multigrain_server"):
            raise
        print(
            f"multigrain-server: needs {package}, which is not installed: "
            "pip install 'multigrain[server]'",
            file=sys.stderr,
        )
        return 1
    return run()


if __name__ == "__main__":
    sys.exit(main())

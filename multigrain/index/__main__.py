"""``python -m multigrain.index``: the index process; the daemon starts one."""

from __future__ import annotations

import argparse
import logging
import socket
from pathlib import Path

from multigrain.processes import die_with_parent, keep_files_private
from multigrain.streams import reserve_descriptors


def main() -> None:
    """Serves the indexes of a folder over an inherited socket."""
    parser = argparse.ArgumentParser(
        prog="python -m multigrain.index",
        description="Stores and searches indexes for the daemon, which starts it.",
    )
    parser.add_argument("--folder", required=True, type=Path, help="of the indexes")
    parser.add_argument("--socket-fd", required=True, type=int, help="inherited stream socket")
    parser.add_argument("--parent-pid", type=int, default=0, help="exits with this process")
    settings = parser.parse_args()
    if settings.parent_pid:
        die_with_parent(settings.parent_pid, exit_code=0)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    from multigrain.index.process import serve

    serve(settings.folder, socket.socket(fileno=settings.socket_fd))


if __name__ == "__main__":
    reserve_descriptors()
    keep_files_private()
    main()

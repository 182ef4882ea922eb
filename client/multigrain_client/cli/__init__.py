"""The command line: ``multigrain``. One command a file."""

from multigrain_client.cli.main import main

__all__ = ["main"]

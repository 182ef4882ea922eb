"""The command line: ``multigrain``."""

from multigrain_client.cli.main import main

__all__ = ["main"]

"""The environment of programs that tests and benchmarks start."""

from __future__ import annotations

import os

# Some tests fork, and the library does: its processes never use gRPC. In pytest's process, gRPC
# would touch its threads' descriptors in each child, and write its errors to the child's standard
# error.
NO_FORK_SUPPORT = "GRPC_ENABLE_FORK_SUPPORT"


def program_environment() -> dict[str, str]:
    """This process's environment for a daemon or client, without what is only for its own gRPC."""
    return {name: value for name, value in os.environ.items() if name != NO_FORK_SUPPORT}

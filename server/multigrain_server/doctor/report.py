"""Runs every check and prints the findings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TextIO

from multigrain_server.config import ServerConfig
from multigrain_server.doctor import interpreter, machine, network, software
from multigrain_server.doctor.finding import Finding, Level

Check = Callable[[], Iterable[Finding]]


def checks(config: ServerConfig) -> Sequence[Check]:
    """Every check, in the order of the report."""
    return (
        interpreter.python,
        software.packages,
        software.mindspore,
        machine.cpu,
        lambda: machine.runtimes(config),
        lambda: machine.devices(config),
        machine.limits,
        lambda: machine.sandbox(config),
        lambda: machine.disk(config),
        lambda: machine.permissions(config),
        lambda: machine.roots(config),
        lambda: network.addresses(config),
        lambda: network.certificates(config),
        lambda: network.callers(config),
    )


def run(checks: Iterable[Check], stream: TextIO | None = None) -> int:
    """Runs the checks and prints each finding at once.

    Args:
        checks: the checks.
        stream: where to print; None = standard output.

    Returns:
        The exit code: 1 if anything is a FAIL, else 0.
    """
    stream = stream or sys.stdout
    levels = []
    for check in checks:
        for finding in check():
            levels.append(finding.level)
            print(finding, file=stream, flush=True)
    failures, warnings = levels.count(Level.FAIL), levels.count(Level.WARN)
    print(f"checks: {len(levels)}, warnings: {warnings}, failures: {failures}", file=stream)
    return 1 if failures else 0

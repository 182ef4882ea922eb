"""Prints the figures of a comparison, for whoever runs it with -s."""

from __future__ import annotations


def record(what: str, *errors: float) -> None:
    print(f"\n{what}: " + ", ".join(f"{error:.1e}" for error in errors), end="")

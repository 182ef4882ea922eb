"""Prints the numbers of a comparison (shown with -s)."""

from __future__ import annotations


def record(what: str, *errors: float) -> None:
    print(f"\n{what}: " + ", ".join(f"{error:.1e}" for error in errors), end="")

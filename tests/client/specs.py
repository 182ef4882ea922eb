"""Specification files that must be refused."""

from __future__ import annotations

# (content of spec.yaml, part of the error)
AMBIGUOUS_SPECS = [
    ("schedule:\n  epochs: 010\n", "spec.yaml line 2, column 11: 'epochs': 010 is ambiguous"),
    ("schedule:\n  batch_size: 1_6\n", "spec.yaml line 2, column 15: 'batch_size': 1_6 is ambig"),
    (
        "schedule:\n  epochs: 1\n  batch_size: 16\n  epochs: 2\n",
        "spec.yaml line 4, column 3: 'epochs' is set twice, first in line 2",
    ),
    ("schedule:\n  epochs: 1\nschedule.epochs: 2\n", "schedule.epochs: is set twice"),
    (
        "preset: &name digits-demo\ninitial_weights: *name\n",
        "spec.yaml line 1, column 9: 'preset': anchors (&name) and aliases (*name) are not allowed",
    ),
    ("#" * (1 << 20) + "\n", "spec.yaml: is larger than 1048576 bytes"),
]

"""Candidate settings of each optimizer, the same number for both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WEIGHT_DECAY = 5e-4


@dataclass(frozen=True)
class Candidate:
    """One set of hyperparameters.

    Args:
        kind: "thor" or "momentum".
        epochs: length of the schedule.
        settings: ``optimizer`` and ``schedule`` of the specification.
    """

    kind: str
    name: str
    epochs: int
    settings: dict[str, Any]


def momentum(rate: float, epochs: int, *, warmup: float = 0.0, mu: float = 0.9) -> Candidate:
    """SGD with momentum ``mu`` and a cosine schedule after ``warmup`` epochs."""
    return _candidate("momentum", rate, epochs, warmup, mu, {})


def thor(
    rate: float, epochs: int, *, damping: float, warmup: float = 0.0, mu: float = 0.9, **more: Any
) -> Candidate:
    """THOR with the same schedule; ``more`` are options of ``optimizer.thor``.

    Without pi correction THOR is slower than momentum here, and without KL clipping some first
    steps are too long. Refreshes follow the trace rule unless ``refresh`` is given: the interval
    between two checks starts at ``frequency`` and doubles up to one epoch, as in the paper and by
    default; w1 and w2 are the paper's.
    """
    always = {"damping_decay": 1.0, "pi_correction": True, "kl_clip": 0.1, "damping_init": damping}
    rule = {"refresh": "trace", "frequency": 4, "w1": 0.01, "w2": 0.0}
    candidate = _candidate("thor", rate, epochs, warmup, mu, {"damping": damping} | more)
    candidate.settings["optimizer"]["thor"] = always | rule | more
    return candidate


def _candidate(
    kind: str, rate: float, epochs: int, warmup: float, mu: float, more: dict[str, Any]
) -> Candidate:
    named = ({"warmup": warmup} if warmup else {}) | ({"mu": mu} if mu != 0.9 else {}) | more
    name = f"{kind} {rate:g} epochs {epochs}" + "".join(f" {k} {v}" for k, v in named.items())
    settings = {
        # With residual branches that start at 0, both optimizers lose the first ten to fifteen
        # steps, in which only the scales grow.
        "model": {"zero_init_residual": False},
        "optimizer": {"kind": kind, "weight_decay": WEIGHT_DECAY, "momentum": mu},
        "schedule": {"learning_rate": {"kind": "cosine", "init": rate, "warmup_epochs": warmup}},
    }
    return Candidate(kind, name, epochs, settings)


# Top-1 of the held-out images.
TARGET = {"digits": 0.97, "glyphs": 0.95}
# The curvature of the initial weights is soon out of date.
_EARLY: dict[str, Any] = {"early_refreshes": (1, 2, 3)}
_AVERAGED: dict[str, Any] = {"refresh": "fixed", "frequency": 2, "factor_average": 0.7}
CANDIDATES: dict[str, list[Candidate]] = {
    "digits": [
        thor(0.1, 3, damping=0.3),
        momentum(0.1, 5),
        thor(0.1, 3, damping=0.3, **_EARLY),
        momentum(0.1, 6),
        thor(0.2, 3, damping=0.3, **_EARLY),
        momentum(0.07, 5),
        thor(0.1, 3, damping=0.3, **_AVERAGED),
        momentum(0.2, 5, warmup=1.0),
        thor(0.2, 3, damping=0.3, **_AVERAGED),
        momentum(0.1, 4),
        thor(0.1, 3, damping=0.1, **_AVERAGED),
        momentum(0.15, 4, warmup=1.0),
        thor(0.2, 3, damping=0.3, mu=0.8, **_AVERAGED),
        momentum(0.2, 5, mu=0.8),
        thor(0.2, 4, damping=0.3, **_AVERAGED),
        momentum(0.15, 4, mu=0.8),
        thor(0.1, 4, damping=0.3, **_EARLY),
        momentum(0.07, 6),
        thor(0.1, 5, damping=0.3, **_EARLY),
        momentum(0.1, 8),
    ],
    "glyphs": [
        thor(0.1, 6, damping=0.3, **_EARLY),
        momentum(0.1, 10),
        thor(0.1, 8, damping=0.3, **_EARLY),
        momentum(0.1, 14),
        thor(0.2, 8, damping=0.3, **_AVERAGED),
        momentum(0.07, 12),
        thor(0.1, 10, damping=0.3),
        momentum(0.2, 12, warmup=2.0),
    ],
}
# Steps between two looks at the accuracy of the held-out images, where an epoch has as many as 7.
LOOK_EVERY = {"digits": 1, "glyphs": 3}

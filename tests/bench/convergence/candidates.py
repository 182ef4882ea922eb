"""The settings of each optimiser that are tried."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tests.bench.convergence.run import merged

WEIGHT_DECAY = 5e-4


@dataclass(frozen=True)
class Candidate:
    """One set of hyper-parameters.

    Args:
        kind: "thor" or "momentum".
        epochs: that the schedule spans.
        settings: ``optimizer`` and ``schedule`` of the specification.
    """

    kind: str
    name: str
    epochs: int
    settings: dict[str, Any]


def momentum(
    rate: float, epochs: int, *, warmup: float = 0.0, zero_init: bool = False
) -> Candidate:
    """SGD with momentum 0.9, a cosine schedule after ``warmup`` epochs of a rising rate."""
    return Candidate(
        "momentum",
        _name("momentum", rate, epochs, zero_init, {"warmup": warmup} if warmup else {}),
        epochs,
        {
            "model": {"zero_init_residual": zero_init},
            "optimizer": {"kind": "momentum", "weight_decay": WEIGHT_DECAY},
            "schedule": {"learning_rate": _cosine(rate, warmup)},
        },
    )


def thor(rate: float, epochs: int, *, zero_init: bool = False, **options: Any) -> Candidate:
    """THOR by the trace rule; ``options`` are those of ``optimizer.thor``.

    The interval between two checks starts at ``frequency`` and doubles up to one epoch, the
    library's default and the paper's; w1 and w2 are the paper's.
    """
    rule = {"refresh": "trace", "w1": 0.01, "w2": 0.0}
    return Candidate(
        "thor",
        _name("thor", rate, epochs, zero_init, options),
        epochs,
        {
            "model": {"zero_init_residual": zero_init},
            "optimizer": {
                "kind": "thor",
                "weight_decay": WEIGHT_DECAY,
                "thor": {"damping_decay": 1.0} | rule | options,
            },
            "schedule": {"learning_rate": _cosine(rate, 0.0)},
        },
    )


def at_fixed_frequency(candidate: Candidate) -> Candidate:
    """The same THOR, which renews every layer's curvature every ``frequency`` steps."""
    settings = merged(candidate.settings, {"optimizer": {"thor": {"refresh": "fixed"}}})
    return replace(candidate, name=f"{candidate.name} at fixed frequency", settings=settings)


def _cosine(rate: float, warmup: float) -> dict[str, Any]:
    return {"kind": "cosine", "init": rate, "warmup_epochs": warmup}


def _name(kind: str, rate: float, epochs: int, zero_init: bool, rest: dict[str, Any]) -> str:
    more = "".join(f" {key} {value}" for key, value in rest.items())
    return f"{kind} {rate:g} epochs {epochs}{more}{' zero-init' if zero_init else ''}"


# Top-1 of the held-out images.
TARGET = {"digits": 0.97, "glyphs": 0.95}
# From a look at the training loss of 24 steps: without pi correction THOR is slower than momentum
# here, and rates of 0.3 and more make momentum diverge at its first steps.
_THOR: dict[str, Any] = {"frequency": 4, "pi_correction": True, "kl_clip": 0.1}
CANDIDATES: dict[str, list[Candidate]] = {
    "digits": [
        thor(0.4, 4, damping_init=1.0, **_THOR),
        momentum(0.1, 8),
        thor(0.2, 4, damping_init=0.3, **_THOR),
        momentum(0.1, 6),
        thor(0.2, 4, damping_init=1.0, **_THOR),
        momentum(0.2, 6, warmup=1.0),
        thor(0.1, 3, damping_init=0.3, **_THOR),
        momentum(0.1, 5),
        thor(0.1, 4, damping_init=0.3, **_THOR),
        momentum(0.15, 6, warmup=1.0),
        momentum(0.07, 6),
        momentum(0.2, 8, zero_init=True),
    ],
    "glyphs": [
        thor(0.4, 6, damping_init=1.0, **_THOR),
        momentum(0.1, 12),
        thor(0.2, 6, damping_init=0.3, **_THOR),
        momentum(0.2, 12, warmup=1.0),
        thor(0.4, 5, damping_init=1.0, **_THOR),
        momentum(0.1, 10),
        momentum(0.2, 10, warmup=1.0),
        momentum(0.2, 14, zero_init=True),
    ],
}

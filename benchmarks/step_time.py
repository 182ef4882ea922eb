"""What a step of THOR costs over one of momentum: ResNet-50 at 224 px.

``python -m benchmarks.step_time``. The two take turns on the same batch. A refresh and the
steps between two are timed apart; the mean over a refresh period follows from the frequency.
Ends with status 1 if the mean is above 1.15 momentum steps, or a refresh above 3.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.contestant import Contestant, median_ms
from multigrain.specs.training import ThorSpec

MODULE = "benchmarks.mindspore_step"
MEAN_LIMIT, REFRESH_LIMIT = 1.15, 3.0
# Refreshes are rare in training; here every so many steps, to have several.
FREQUENCY = 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--periods", type=int, default=5)
    options = parser.parse_args()
    common = ["--batch", str(options.batch), "--warm-up", str(2 * FREQUENCY)]
    momentum_s: list[float] = []
    thor_s: list[float] = []
    refresh_s: list[float] = []
    with (
        Contestant(MODULE, ["--kind", "momentum", *common]) as momentum,
        Contestant(MODULE, ["--kind", "thor", "--frequency", str(FREQUENCY), *common]) as thor,
    ):
        for _ in range(options.periods):
            for _ in range(FREQUENCY):
                momentum_s += momentum.turn(1).seconds
                turn = thor.turn(1)
                (refresh_s if turn.refreshed[0] else thor_s).extend(turn.seconds)
        parts = thor.turn(1, parts=True)

    base, plain, refresh = median_ms(momentum_s), median_ms(thor_s), median_ms(refresh_s)
    print(f"momentum {base:.0f} ms, THOR {plain:.0f} ms = {plain / base:.3f}")
    print(f"refresh {refresh:.0f} ms = {refresh / base:.2f}, of which (of one, profiled):")
    for name, seconds in parts.parts.items():
        print(f"  {name}: {seconds * 1000:.0f} ms")
    frequency = ThorSpec().frequency
    mean = (refresh + (frequency - 1) * plain) / frequency / base
    print(f"mean over a period of {frequency} steps: {mean:.3f}, allowed {MEAN_LIMIT}")
    return 0 if mean <= MEAN_LIMIT and refresh / base <= REFRESH_LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())

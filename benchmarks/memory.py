"""What THOR needs in memory over momentum: ResNet-50 at 224 px.

``python -m benchmarks.memory``. The state that each keeps is counted exactly; the largest
resident memory is that of two processes after some steps, with two refreshes for THOR. Ends with
status 1 if THOR keeps more than 100 MiB over momentum.
"""

from __future__ import annotations

import sys

from benchmarks.contestant import MIB, Contestant

MODULE = "benchmarks.mindspore_step"
LIMIT_MIB = 100


def main() -> int:
    found = {}
    for kind in ("momentum", "thor"):
        with Contestant(MODULE, ["--kind", kind, "--frequency", "3", "--warm-up", "5"]) as steps:
            found[kind] = steps.turn(1)
    states = {kind: sum(turn.bytes.values()) / MIB for kind, turn in found.items()}
    for kind, turn in found.items():
        print(f"{kind}: state {states[kind]:.1f} MiB, largest resident {turn.peak_mib:.0f} MiB")
    more = states["thor"] - states["momentum"]
    peak = found["thor"].peak_mib - found["momentum"].peak_mib
    print(f"THOR keeps {more:.1f} MiB more, allowed {LIMIT_MIB}; resident: {peak:.0f} MiB more")
    return 0 if more <= LIMIT_MIB else 1


if __name__ == "__main__":
    sys.exit(main())

"""Memory that THOR needs in addition to SGD with momentum, ResNet-50 at 224 px.

``python -m benchmarks.memory``. The size of the optimizer state is exact; the largest resident
memory is measured in one process each after some steps, including two refreshes for THOR. Exits
with 1 if THOR's state is more than 100 MiB larger.
"""

from __future__ import annotations

import sys

from benchmarks.alternating import MIB, BenchmarkProcess

MODULE = "benchmarks.mindspore_step"
LIMIT_MIB = 100


def main() -> int:
    results = {}
    for kind in ("momentum", "thor"):
        with BenchmarkProcess(
            MODULE, ["--kind", kind, "--frequency", "3", "--warm-up", "5"]
        ) as steps:
            results[kind] = steps.measure(1)
    states = {kind: sum(result.bytes.values()) / MIB for kind, result in results.items()}
    for kind, result in results.items():
        print(f"{kind}: state {states[kind]:.1f} MiB, largest resident {result.peak_mib:.0f} MiB")
    more = states["thor"] - states["momentum"]
    peak = results["thor"].peak_mib - results["momentum"].peak_mib
    print(f"THOR: state {more:.1f} MiB larger, limit {LIMIT_MIB}; resident {peak:.0f} MiB larger")
    return 0 if more <= LIMIT_MIB else 1


if __name__ == "__main__":
    sys.exit(main())

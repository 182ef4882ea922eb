"""CPU time of importing the client and the daemon, beside importing gRPC alone.

``python -m benchmarks.import_time``. Each import runs in a fresh interpreter, the three in turns,
so that changes of the machine's speed affect all of them; prints medians and ratios.
"""

from __future__ import annotations

import subprocess
import sys
from statistics import median

MODULES = ("grpc.aio", "multigrain_client", "multigrain_server.main")
ROUNDS = 7


def cpu_seconds(module: str) -> float:
    """CPU seconds of an interpreter that imports one module and ends."""
    program = f"import time, {module}; print(time.process_time())"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return float(ended.stdout)


def main() -> None:
    seconds: dict[str, list[float]] = {module: [] for module in MODULES}
    for _ in range(ROUNDS):
        for module in MODULES:
            seconds[module].append(cpu_seconds(module))
    reference = median(seconds[MODULES[0]])
    for module, times in seconds.items():
        print(f"{module}: {median(times):.2f} s, {median(times) / reference:.1f} x {MODULES[0]}")


if __name__ == "__main__":
    main()

"""CPU time of importing the client and the daemon, and gRPC alone.

Each import runs in a fresh interpreter, the three in rotation, so that changes of the machine's
speed affect all of them.
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks import results

MODULES = ("grpc.aio", "multigrain_client", "multigrain_server.main")
ROUNDS = 7


def cpu_seconds(module: str) -> float:
    """CPU seconds of an interpreter that imports one module and ends."""
    program = f"import time, {module}; print(time.process_time())"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return float(ended.stdout)


def main() -> int:
    report = results.Report("import_time", results.parser("import_time").parse_args())
    seconds: dict[str, list[float]] = {module: [] for module in MODULES}
    for _ in range(ROUNDS):
        for module in MODULES:
            seconds[module].append(cpu_seconds(module))
    for module in MODULES[1:]:
        milliseconds = [1000 * one for one in seconds[module]]
        grpc = [1000 * one for one in seconds[MODULES[0]]]
        report.compare(module, milliseconds, unit="ms", over=grpc, reference=MODULES[0])
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())

"""Prints a table of scenarios: ``python -m tests.simulation [--count N] [--seed S]``."""

from __future__ import annotations

import argparse
import logging
import sys

import structlog

from tests.simulation.sweep import scenarios


def main() -> int:
    """Returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--count", type=int, default=20, help="scenarios that are drawn")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    failed = 0
    for scenario in scenarios(options.seed, options.count):
        result = scenario.run()
        failures = result.failures()
        failed += bool(failures)
        print(f"{'MISSED' if failures else 'held  '} {scenario.name}: {result.summary()}")
        for failure in failures:
            print(f"       {failure.removeprefix(scenario.name + ': ')}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

"""All pairs of near copies by bounds, and by the products of all vectors."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from benchmarks import results
from multigrain.index.pairs import Pairs, PairSearch
from tests.index.data import image_vectors

THRESHOLD = 0.97
SIZES = ((512, 1 / 3), (2048, 1 / 6))


def search(vectors: NDArray[np.float32], components: int | None) -> tuple[float, Pairs]:
    """The processor time of a search, and the pairs."""
    start = time.process_time()
    pairs = PairSearch(vectors, THRESHOLD, components=components).all()
    return time.process_time() - start, pairs


def main() -> int:
    parser = results.parser("near_copies")
    parser.add_argument("--rows", type=int, default=40_000, help="vectors; default 40,000")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument(
        "--large",
        type=int,
        default=0,
        metavar="ROWS",
        help="also that many of 512, without a reference",
    )
    options = parser.parse_args()
    report = results.Report("near_copies", options)
    for size, goal in SIZES:
        vectors = image_vectors(options.rows, size, classes=1000)
        bounds, products = [], []
        for _ in range(options.rounds):
            seconds, found = search(vectors, None)
            bounds.append(seconds)
            seconds, expected = search(vectors, 0)
            products.append(seconds)
            if not np.array_equal(found.first, expected.first) or not np.array_equal(
                found.second, expected.second
            ):
                raise AssertionError("the pairs differ")
        report.compare(
            f"{options.rows:,} vectors of {size}, CPU time", bounds, over=products, unit="s",
            reference="products of all vectors", at_most=goal,
        )  # fmt: skip
    if options.large:
        vectors = image_vectors(options.large, 512, classes=1000)
        start = time.monotonic()
        found = PairSearch(vectors, THRESHOLD).all()
        report.compare(
            f"{options.large:,} vectors of 512, wall time", (time.monotonic() - start) / 60,
            unit="min", at_most=30.0,
        )  # fmt: skip
        report.note(f"{len(found):,} pairs of {options.large:,} vectors.")
    report.note(f"Pairs above {THRESHOLD}; both searches found the same ones.")
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())

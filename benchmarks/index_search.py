"""Searches of a large index by LanceDB, beside faiss and the products of all vectors.

Recall counts a hit if it is as similar as the tenth nearest. The vectors are synthetic, with the
structure of classes, objects and near copies.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import results
from multigrain.index.filters import Filter, Range
from multigrain.index.items import Field, Item
from multigrain.index.lance_store import LanceStore
from tests.index.data import image_vectors

K, BATCH, QUERIES = 10, 32, 320
SHARES = (0.5, 0.05, 0.01, 0.001)

Vectors = NDArray[np.float32]


def cpu_ms(call: Callable[[Vectors], object], queries: Vectors, batch: int) -> float:
    """Processor time of a query, in ms."""
    start = time.process_time()
    for at in range(0, len(queries), batch):
        call(queries[at : at + batch])
    return 1e3 * (time.process_time() - start) / len(queries)


def recall(
    store: LanceStore, queries: Vectors, vectors: Vectors, chosen: Filter | None, rows: Any
) -> float:
    """Fraction of the nearest items that a balanced search finds among some rows."""
    similarity = queries @ vectors[rows].T
    k = min(K, similarity.shape[1])
    least = np.sort(similarity, axis=1)[:, -k]
    found = 0
    for at in range(0, len(queries), BATCH):
        part = store.search(queries[at : at + BATCH], k, chosen=chosen)
        for hits, bound in zip(part, least[at : at + BATCH], strict=True):
            found += sum(hit.similarity >= bound - 1e-5 for hit in hits)
    return found / (k * len(queries))


def faiss_search(vectors: Vectors) -> Callable[[Vectors], Any] | None:
    """Searches of faiss' HNSW graph; None without faiss."""
    try:
        import faiss
    except ImportError:
        return None
    faiss.omp_set_num_threads(1)
    graph = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = 200, 64
    graph.add(vectors)
    return lambda queries: graph.search(queries, K)


def main() -> int:
    parser = results.parser("index_search")
    parser.add_argument("--rows", type=int, default=100_000, help="vectors; default 100,000")
    parser.add_argument("--size", type=int, default=512, help="numbers in a vector; default 512")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--no-faiss", action="store_true", help="its graph takes minutes to build")
    options = parser.parse_args()
    report = results.Report("index_search", options)
    what = f"{options.rows:,} x {options.size}"
    made = image_vectors(options.rows + QUERIES, options.size, classes=1000)
    order = np.random.default_rng(3).permutation(len(made))
    queries, vectors = made[order[:QUERIES]], made[order[QUERIES:]]
    with tempfile.TemporaryDirectory() as folder:
        store = LanceStore(Path(folder), options.size, [Field("rank", "float")], create=True)
        start = time.process_time()
        for at in range(0, len(vectors), 1000):
            part = vectors[at : at + 1000]
            items = [
                Item(f"{row:08}", attributes={"rank": row / len(vectors)})
                for row in range(at, at + len(part))
            ]
            store.add(items, part)
        added = time.process_time() - start
        start = time.process_time()
        store.maintain()
        report.compare(f"{what}: adding, CPU time per 1,000", 1e6 * added / len(vectors), unit="ms")
        report.compare(f"{what}: vector index, CPU time", time.process_time() - start, unit="s")
        megabytes = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file()) / 1e6
        report.compare(f"{what}: on the disk", megabytes, unit="MB")
        every = slice(None)
        report.compare(
            f"{what}: recall", recall(store, queries, vectors, None, every), at_least=0.99
        )
        for share in SHARES:
            rows = np.arange(len(vectors)) < share * len(vectors)
            chosen = Range("rank", None, float(np.flatnonzero(rows)[-1]) / len(vectors))
            report.compare(
                f"{what}: recall under a filter of {100 * share:g} %",
                recall(store, queries[:96], vectors, chosen, rows), at_least=0.99,
            )  # fmt: skip
        reference = None if options.no_faiss else faiss_search(vectors)
        batches, alone, others, plain = [], [], [], []
        for _ in range(options.rounds):
            batches.append(cpu_ms(lambda part: store.search(part, K), queries, BATCH))
            alone.append(cpu_ms(lambda part: store.search(part, K), queries[:64], 1))
            plain.append(cpu_ms(lambda part: np.argpartition(part @ vectors.T, -K), queries, BATCH))
            if reference is not None:
                others.append(cpu_ms(reference, queries, BATCH))
        report.compare(
            f"{what}: a query of {BATCH}, CPU time", batches, over=plain, unit="ms",
            reference="products of all vectors in NumPy",
        )  # fmt: skip
        if others:
            report.compare(
                f"{what}: a query of {BATCH}, CPU time", batches, over=others, unit="ms",
                reference="faiss HNSW, M 32, efSearch 64", at_most=4.0,
            )  # fmt: skip
        else:
            report.missing(f"{what}: beside faiss", "pip install faiss-cpu, without --no-faiss")
        report.compare(f"{what}: a query alone, CPU time", alone, unit="ms", at_most=12.0)
        store.close()
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())

"""How far an evaluation is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from mindspore import nn

from multigrain.data.benchmarks import Benchmark
from multigrain.data.image_folder import ImageFolder
from multigrain.evaluate.all_reduce import AllReduce
from multigrain.evaluate.classification import ClassificationCounter, ClassificationResult
from multigrain.evaluate.copy_detection import CopyDetectionResult, EmbeddingTable, evaluate_copies
from multigrain.evaluate.inference import FloatArray, Inference, Transform
from multigrain.evaluate.retrieval import BenchmarkResult, Ranker
from multigrain.events.records import ProgressRecord
from multigrain.jobs.context import Reporter
from multigrain.specs.evaluation import Task

INTERVAL_SECONDS = 1.0


class EvaluationProgress:
    """Reports signs of life from every worker, and a ProgressRecord from the first, at most one
    a second: the other workers have shares of the same size and are about as far.

    Args:
        reporter: told.
        images: of all workers.
        share: images of this worker.
        passes: how often each goes through the network.
        rank: of this worker.
        clock: seconds.
    """

    def __init__(
        self,
        reporter: Reporter,
        *,
        images: int,
        share: int,
        passes: int,
        rank: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reporter = reporter
        self._total = images * passes
        self._share = share
        self._passes = passes
        self._rank = rank
        self._clock = clock
        self._start = self._last = clock()
        self._before = 0  # images of earlier passes

    def done(self, images: int) -> None:
        """So many images of this worker's share are done in this pass."""
        self._reporter.alive()
        now = self._clock()
        if self._rank or now - self._last < INTERVAL_SECONDS:
            return
        self._last = now
        mine = self._before + images
        share = mine / max(1, self._share * self._passes)
        left = (now - self._start) * (1 - share) / share if share else -1.0
        self._reporter.emit(
            ProgressRecord(done=round(share * self._total), total=self._total, eta_seconds=left)
        )

    def next_pass(self) -> None:
        """The images begin anew."""
        self._before += self._share


# MERGED: The figures of a network on a set of images, by any of the tasks that share one pass.


class Progress(Protocol):
    """Told how far the images are."""

    def done(self, images: int) -> None:
        """So many images of this worker's share are done in this pass."""
        ...

    def next_pass(self) -> None:
        """The images begin anew."""
        ...


@dataclass
class HeartbeatProgress:
    """Progress that is no more than a sign of life."""

    reporter: Reporter

    def done(self, images: int) -> None:
        self.reporter.alive()

    def next_pass(self) -> None:
        pass


@dataclass(frozen=True)
class EvaluationResult:
    """Results of the tasks that were asked for.

    Args:
        total: images of the folder, readable or not.
        unreadable: index -> reason, of *this worker's* share.
        seconds: it took.
    """

    total: int
    classification: ClassificationResult | None = None
    copies: CopyDetectionResult | None = None
    found: BenchmarkResult | None = None
    unreadable: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def metrics(self) -> dict[str, float]:
        """Every figure by its name; see ``multigrain.specs.evaluation.TASK_METRICS``."""
        metrics: dict[str, float] = {}
        for result in (self.classification, self.copies, self.found):
            if result is not None:
                metrics |= result.metrics
        return metrics

    @property
    def images(self) -> int:
        """Images scored, over all workers."""
        for result in (self.classification, self.copies, self.found):
            if result is not None:
                return result.images
        return 0


@dataclass
class Evaluator:
    """Sends every image of a folder through a network: once, and for copy detection once more
    as a distorted copy. Every worker's share together gives the same figures for any number of
    workers. Collective: every worker makes one with the same arguments, but its rank.

    Args:
        folder: the images; for "classification" with the network's class numbers.
        tasks: "classification", "copy_detection", and the benchmark's.
        benchmark: of the same folder, if one is searched.
        transform: how images are prepared.
        reporter: of this worker.
        batch_size: images of one forward pass.
        rank, world: of this worker.
        threads: that prepare images; 0 = this worker's share of the cores.
        seed: of the distortions.
    """

    folder: ImageFolder
    tasks: tuple[Task, ...]
    benchmark: Benchmark | None
    transform: Transform
    reporter: Reporter
    batch_size: int
    rank: int = 0
    world: int = 1
    threads: int = 0
    seed: int = 0
    all_reduce: AllReduce | None = None

    def __post_init__(self) -> None:
        self._all_reduce = self.all_reduce or AllReduce(self.world)
        self._batches = self.transform.batches(
            self.folder,
            self.batch_size,
            rank=self.rank,
            world=self.world,
            all_reduce=self._all_reduce,
            threads=self.threads,
            alive=self.reporter.alive,
        )

    @property
    def share(self) -> int:
        """Images of this worker."""
        return len(self._batches)

    @property
    def passes(self) -> int:
        """How often each image goes through the network."""
        return 2 if "copy_detection" in self.tasks else 1

    def run(
        self,
        network: nn.Cell,
        embedding_size: int,
        progress: Progress,
        on_unreadable: Callable[[dict[int, str]], None] = lambda _unreadable: None,
    ) -> EvaluationResult | None:
        """Evaluates. Collective.

        Args:
            network: images (N, 3, H, W) -> embedding (N, C), logits (N, K); its training mode is
                restored afterwards.
            embedding_size: C.
            progress: told.
            on_unreadable: told of the images of this worker that are left out, index -> reason.

        Returns:
            None if any worker was asked to stop: of a part of the images there are no figures.

        Raises:
            MultigrainError: DATASET if no image, or no query, was readable; NOT_FINITE if
                outputs are not.
        """
        start = time.monotonic()
        inference = Inference(
            network,
            self.batch_size,
            self.rank,
            self.world,
            threads=self.threads,
            on_progress=progress.done,
            should_stop=self._should_stop,
        )
        counter, originals = ClassificationCounter(self.folder), EmbeddingTable(len(self.folder))
        unreadable: dict[int, str] = {}
        for predictions in inference.run_batches(self._batches, self._load, unreadable):
            if "classification" in self.tasks:
                counter.add(predictions)
            if self.tasks != ("classification",):
                originals.add(predictions.indices, predictions.embedding)
        on_unreadable(unreadable)
        if self._stopped():
            return None
        classification: ClassificationResult | None = None
        if "classification" in self.tasks:
            classification = counter.result(self._all_reduce)
        copies: CopyDetectionResult | None = None
        if "copy_detection" in self.tasks:
            progress.next_pass()
            copies = evaluate_copies(
                inference,
                self.folder,
                self.transform,
                originals,
                seed=self.seed,
                all_reduce=self._all_reduce,
                embedding_size=embedding_size,
                batches=self._batches,
            )
            if self._stopped():
                return None
        found: BenchmarkResult | None = None
        if self.benchmark is not None:
            found = self._search(self.benchmark, originals, embedding_size)
            if found is None:
                return None
        seconds = time.monotonic() - start
        return EvaluationResult(
            len(self.folder), classification, copies, found, unreadable, seconds
        )

    def _load(self, index: int) -> FloatArray:
        return self.transform.file(self.folder, index)

    def _should_stop(self) -> bool:
        return self.reporter.stop_requested

    def _stopped(self) -> bool:
        """Whether any worker was asked to stop. Collective: all of them end at the same point."""
        return self._all_reduce.any(self.reporter.stop_requested)

    def _search(
        self, benchmark: Benchmark, originals: EmbeddingTable, embedding_size: int
    ) -> BenchmarkResult | None:
        """What the benchmark's queries find; None if a worker was asked to stop. Collective."""
        embeddings, present = originals.checked(self.folder, embedding_size, self._all_reduce)
        ranking = Ranker(benchmark, embeddings, present).rank(
            self._all_reduce,
            rank=self.rank,
            world=self.world,
            alive=self.reporter.alive,
            should_stop=self._should_stop,
        )
        if ranking is None:
            return None
        return BenchmarkResult(benchmark, ranking, present, self.transform.kind)

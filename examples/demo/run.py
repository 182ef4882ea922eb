"""The seven stages of the demo."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from examples.demo.daemon import Daemon
from examples.demo.digits import DigitFolders, distort, write_digits
from examples.demo.folder import DemoFolder
from examples.demo.report import TARGET_TOP1, Report
from examples.demo.retrieval import Query, draw_contact_sheet, nearest, pick_one_per_class
from multigrain.v1.job_pb2 import Job
from multigrain_client.cli.output import Output
from multigrain_client.cli.progress import LineDisplay, choose, show
from multigrain_client.errors import InvalidRequest, MultigrainClientError
from multigrain_client.jobs import is_terminal, latest_curve, raise_unless_succeeded
from multigrain_client.plotting import Curve, plot_losses
from multigrain_client.sync.client import Client

PRESET = "digits-demo"
MODEL = "digits"
NEIGHBORS = 7
# The scans have 8 pixels a side.
FILE_SIZE = 32
# A job stops after its current step; on a busy machine the first one takes a minute.
CANCEL_SECONDS = 180.0


@dataclass(frozen=True)
class DemoOptions:
    """Options of the demo. None means the preset's value.

    Attributes:
        out: folder to write to.
        size: side of the image files and of the model's input in pixels; None: 32-pixel files
            and the preset's input size.
        epochs: of the training run.
        workers: number of training processes.
    """

    out: Path
    size: int | None = None
    epochs: int | None = None
    workers: int = 2


def run_demo(options: DemoOptions, output: Output) -> int:
    """Runs the demo; returns the exit code: 1 if the target accuracy was missed."""
    size = FILE_SIZE if options.size is None else options.size
    if not FILE_SIZE <= size <= 1024:
        raise InvalidRequest("--size: must be 32..1024 pixels")
    folder = DemoFolder(options.out)
    if folder.prepare():
        output.line(f"replacing the previous run in {folder.path}")
    report = Report(workers=options.workers)
    with _termination_as_interrupt():
        with report.stage(output, "dataset", "writing the UCI digits as image files"):
            digits = write_digits(folder.dataset, size)
            report.train_images, report.held_out_images = digits.train_images, digits.val_images
        demo = Demo(options, output, folder, digits, report)
        demo.run()
    report.write(folder.summary)
    output.data({"summary": str(folder.summary), "top1": report.top1, "good": report.good})
    _print_summary(output, report, folder)
    return 0 if report.good else 1


class Demo:
    """Stages 2 to 7, which need the daemon."""

    def __init__(
        self,
        options: DemoOptions,
        output: Output,
        folder: DemoFolder,
        digits: DigitFolders,
        report: Report,
    ) -> None:
        self._options = options
        self._output = output
        self._folder = folder
        self._digits = digits
        self._report = report
        self._job: Job | None = None

    def run(self) -> None:
        report, output = self._report, self._output
        daemon = Daemon(self._folder.data, [self._folder.dataset], self._folder.server_log)
        with report.stage(output, "daemon start", "starting the daemon"):
            daemon.__enter__()
        try:
            with Client(daemon.address) as client:
                try:
                    self._steps(client)
                except BaseException:
                    self._cancel(client)
                    raise
        finally:
            with report.stage(output, "shutdown", "shutting down"):
                daemon.__exit__()
        if daemon.exit_code:
            raise MultigrainClientError(
                f"the daemon exited with code {daemon.exit_code}; see {self._folder.server_log}"
            )

    def _steps(self, client: Client) -> None:
        report, output = self._report, self._output
        workers = self._options.workers
        with report.stage(
            output, "training", f"training MultiGrain with THOR on {workers} workers"
        ):
            job = self._train(client)
        with report.stage(output, "evaluation", "evaluating on all held-out images"):
            self._evaluate(client, job)
        with report.stage(output, "export", "exporting MINDIR and ONNX and loading the model"):
            model = self._export_and_load(client, job)
        with report.stage(output, "serving", "embedding and classifying over gRPC"):
            self._serve(client, model)
            points = latest_curve(client.stream_losses(job, follow=False))
            plot_losses([Curve(PRESET, points)], self._folder.loss_plot)

    def _train(self, client: Client) -> Job:
        overrides: dict[str, Any] = {
            # No val_path: held-out images are not used in training or to choose a checkpoint.
            "dataset.train_path": self._digits.train,
            "devices.count": self._options.workers,
        }
        if self._options.size is not None:
            overrides["model.image_size"] = self._options.size
        if self._options.epochs is not None:
            overrides["schedule.epochs"] = self._options.epochs
        job = client.start_training(preset=PRESET, name="digits", **overrides)
        job = self._follow(client, job, live=True)
        points = latest_curve(client.stream_losses(job, follow=False))
        report = self._report
        report.steps, report.epochs = len(points), job.training.schedule.epochs
        tenth = max(len(points) // 10, 1)
        report.first_loss = _mean([point.loss for point in points[:tenth]])
        report.last_loss = _mean([point.loss for point in points[-tenth:]])
        report.images_per_second = _mean([point.images_per_second for point in points])
        return job

    def _evaluate(self, client: Client, job: Job) -> None:
        evaluation = client.evaluate(job=job, dataset_path=self._digits.val, name="digits")
        self._report.metrics = dict(self._follow(client, evaluation).metrics)

    def _export_and_load(self, client: Client, job: Job) -> str:
        export = client.export(job=job, model_name=MODEL, formats=["mindir", "onnx"], name="digits")
        artifact = self._follow(client, export).artifact
        model = client.load_model(artifact.model, make_default=True)
        self._report.model = artifact.model
        self._report.runtime, self._report.load_seconds = model.runtime, model.load_seconds
        return artifact.model

    def _serve(self, client: Client, model: str) -> None:
        from PIL import Image

        report, paths = self._report, self._digits.held_out()
        start = time.monotonic()
        gallery = client.embed(paths, model=model)
        report.embedded_per_second = len(paths) / (time.monotonic() - start)
        report.vector_size = gallery.shape[1]
        answers = client.classify(paths, top_k=1, model=model)
        correct = [
            answer[0].label == path.parent.name for answer, path in zip(answers, paths, strict=True)
        ]
        report.served_top1 = sum(correct) / len(correct)

        queries: list[Query] = []
        for number, index in enumerate(pick_one_per_class(paths)):
            with Image.open(paths[index]) as opened:
                image = opened.convert("RGB")
            # Every second query is a distorted copy, which should find its original.
            is_copy = number % 2 == 1
            if is_copy:
                image = distort(image, seed=number)
            (vector,) = client.embed(image, model=model)
            (answer,) = client.classify(image, top_k=1, model=model)
            neighbors = nearest(
                vector, gallery, paths, count=NEIGHBORS, itself=index, is_copy=is_copy
            )
            queries.append(Query(paths[index], image, is_copy, answer[0], neighbors))
        report.copies = sum(query.is_copy for query in queries)
        report.copies_found_first = sum(query.neighbors[0].is_original for query in queries)
        draw_contact_sheet(queries, self._folder.contact_sheet)

    def _follow(self, client: Client, job: Job, *, live: bool = False) -> Job:
        self._job = job
        display = choose(self._output, job) if live else LineDisplay(self._output, job)
        with display:
            job = show(client, job, display)
        self._job = None
        return raise_unless_succeeded(job)

    def _cancel(self, client: Client) -> None:
        """Jobs outlive the daemon, so an interrupted demo has to cancel its job."""
        if self._job is None:
            return
        try:
            job = client.cancel(self._job)
            self._output.line(f"canceling job {job.job_id}, which first saves a checkpoint")
            if not is_terminal(job):
                for _ in client.stream_events(job, kinds=["state"], timeout=CANCEL_SECONDS):
                    pass
        except MultigrainClientError as error:
            # The exception being raised matters more.
            self._output.line(f"could not cancel job {self._job.job_id}: {error}")


def _print_summary(output: Output, report: Report, folder: DemoFolder) -> None:
    output.line()
    files = {
        "contact sheet": folder.contact_sheet,
        "loss curve": folder.loss_plot,
        "data directory": folder.data,
        "daemon's log": folder.server_log,
    }
    for line in report.lines(files):
        output.line(line)
    output.line()
    verdict = "reached" if report.good else "MISSED"
    output.line(
        f"top-1 {report.top1:.2%} on held-out digits: target of {TARGET_TOP1:.0%} {verdict}"
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Turns SIGTERM into KeyboardInterrupt, so that the job is canceled and the daemon stopped."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

"""Commands that start, watch and control jobs."""

from __future__ import annotations

import argparse
from itertools import islice

from multigrain.text import stored_path
from multigrain.v1.job_pb2 import Job, JobKind, JobState
from multigrain_client.cli.arguments import (
    FAILED,
    OK,
    Command,
    Context,
    Result,
    absolute,
    add_job_options,
    count,
    find,
    found_id,
    job_id,
    label,
    one_of,
    pairs,
    positive,
)
from multigrain_client.cli.output import JOB_HEAD, Output, OutputError, job_lines, job_row
from multigrain_client.cli.progress import choose, show
from multigrain_client.errors import MultigrainClientError
from multigrain_client.jobs import is_terminal, kind_name, latest_curve, state_name
from multigrain_client.json_format import spec_yaml, to_plain
from multigrain_client.output_file import OutputFile
from multigrain_client.plotting import Curve, plot_losses
from multigrain_client.sync.client import Client


def _configure_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset",
        help="preset that provides every field that is not set; default: one for photos, which "
        "the server chooses by the number of images and the device",
    )
    parser.add_argument(
        "--train",
        metavar="FOLDER",
        help="dataset.train_path: one subfolder of images per class, on the server's host "
        "(a relative path starts in the current directory)",
    )
    parser.add_argument(
        "--val",
        metavar="FOLDER",
        help="dataset.val_path, likewise; default: a part of the "
        "training images is held out (dataset.val_fraction), unless the preset says otherwise",
    )
    parser.add_argument(
        "--from",
        dest="weights",
        metavar="WEIGHTS",
        help="initial_weights: job:ID, job:ID@best, model:NAME@VERSION, torchvision:NAME, "
        "timm:NAME, or a path on the server's host",
    )
    parser.add_argument("--request-id", help="idempotency key; default: a new one")
    add_job_options(parser)


def _train(context: Context) -> int:
    arguments = context.arguments
    overrides = pairs(arguments.settings)
    for flag, given, key in (
        ("--train", arguments.train, "dataset.train_path"),
        ("--val", arguments.val, "dataset.val_path"),
        ("--from", arguments.weights, "initial_weights"),
    ):
        if given is not None:
            overrides[key] = absolute(given, flag)
    with context.connect() as client:
        job = client.start_training(
            arguments.spec,
            preset=arguments.preset,
            name=arguments.name,
            labels=pairs(arguments.labels),
            request_id=arguments.request_id,
            validate_only=_only_checked(arguments),
            **overrides,
        )
        return _started(context, client, job)


def _configure_evaluate(parser: argparse.ArgumentParser) -> None:
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--job", help="training job whose weights are evaluated")
    weights.add_argument(
        "--checkpoint-path",
        metavar="PATH",
        help="checkpoint or weights file on the server's host, or weights as train --from names "
        "them",
    )
    weights.add_argument("--model", help="model of the registry")
    parser.add_argument("--checkpoint", help="with --job: last (default), best or a step")
    parser.add_argument(
        "--dataset",
        metavar="FOLDER",
        help="the images, on the server's host (a relative path starts in the current directory): "
        "one subfolder per class or group, or the layout of a published benchmark; default: those "
        "that the training job of the weights held out",
    )
    parser.add_argument(
        "--task",
        dest="tasks",
        metavar="TASK",
        action="append",
        help="classification, copy_detection, groups (repeatable; default: the first two), or one "
        "of gem_p, holidays, ukb, copydays",
    )
    parser.add_argument(
        "--transform",
        choices=("crop", "rect"),
        help="crop (default): center crop, as in serving; rect: the whole image, its longest side "
        "scaled to the resolution",
    )
    parser.add_argument(
        "--resolution", type=positive, metavar="PIXELS", help="default: the training resolution"
    )
    parser.add_argument(
        "--group-queries",
        choices=("all", "first"),
        help="with groups: every image is a query (default), or the first of each group",
    )
    add_job_options(parser)


def _evaluate(context: Context) -> int:
    arguments = context.arguments
    options = ("transform", "resolution", "group_queries")
    chosen = {name: value for name in options if (value := getattr(arguments, name)) is not None}
    with context.connect() as client:
        job = client.evaluate(
            arguments.spec,
            job=arguments.job and found_id(client, arguments.job),
            checkpoint_path=absolute(arguments.checkpoint_path, "--checkpoint-path"),
            model=arguments.model,
            checkpoint=arguments.checkpoint,
            dataset_path=absolute(arguments.dataset, "--dataset"),
            tasks=arguments.tasks,
            name=arguments.name,
            labels=pairs(arguments.labels),
            validate_only=_only_checked(arguments),
            **{**chosen, **pairs(arguments.settings)},
        )
        return _started(context, client, job)


def _configure_export(parser: argparse.ArgumentParser) -> None:
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--job", help="training job whose weights are exported")
    weights.add_argument(
        "--checkpoint-path",
        metavar="PATH",
        help="checkpoint or weights file on the server's host, or weights as train --from names "
        "them",
    )
    parser.add_argument("--checkpoint", help="with --job: last (default), best or a step")
    parser.add_argument("--model-name", help="name in the registry")
    parser.add_argument(
        "--format",
        dest="formats",
        metavar="FORMAT",
        action="append",
        help="mindir, onnx or air (Ascend only); repeatable; default: mindir and onnx",
    )
    add_job_options(parser)


def _export(context: Context) -> int:
    arguments = context.arguments
    with context.connect() as client:
        job = client.export(
            arguments.spec,
            job=arguments.job and found_id(client, arguments.job),
            checkpoint_path=absolute(arguments.checkpoint_path, "--checkpoint-path"),
            checkpoint=arguments.checkpoint,
            model_name=arguments.model_name,
            formats=arguments.formats,
            name=arguments.name,
            labels=pairs(arguments.labels),
            validate_only=_only_checked(arguments),
            **pairs(arguments.settings),
        )
        return _started(context, client, job)


def _configure_watch(parser: argparse.ArgumentParser) -> None:
    job_id(parser)
    parser.add_argument(
        "--after-seq", type=count, default=0, metavar="N", help="only events after this one"
    )
    parser.add_argument(
        "--every", type=positive, default=1, metavar="N", help="in a pipe: show every Nth step only"
    )
    parser.add_argument("--plain", action="store_true", help="plain lines even on a terminal")


def _watch(context: Context) -> int:
    arguments = context.arguments
    with context.connect() as client:
        return _follow(
            client,
            find(client, arguments.job),
            context.output,
            after_seq=arguments.after_seq,
            every=arguments.every,
            plain=arguments.plain,
        )


def _configure_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", nargs="?", help="id of one job, to show its details")
    parser.add_argument(
        "--state",
        dest="states",
        metavar="STATE",
        action="append",
        type=one_of(JobState.DESCRIPTOR),
        default=[],
        help="such as running; repeatable",
    )
    parser.add_argument(
        "--kind",
        dest="kinds",
        metavar="KIND",
        action="append",
        type=one_of(JobKind.DESCRIPTOR),
        default=[],
        help="training, evaluation or export; repeatable",
    )
    parser.add_argument(
        "--label",
        dest="labels",
        action="append",
        type=label,
        metavar="KEY=VALUE",
        help="only jobs with this label; repeatable",
    )
    parser.add_argument("--name", default="", help="part of the name")
    parser.add_argument("--limit", type=count, default=50, metavar="N", help="default 50; 0 = all")


def _jobs(context: Context) -> int:
    arguments = context.arguments
    with context.connect() as client:
        if arguments.job:
            job = find(client, arguments.job)
            context.output.data(job)
            for line in job_lines(job):
                context.output.line(line)
            return OK
        matching = client.jobs(
            states=arguments.states,
            kinds=arguments.kinds,
            labels=pairs(arguments.labels),
            name_contains=arguments.name,
        )
        found = list(islice(matching, arguments.limit or None))
    context.output.data([to_plain(job) for job in found])
    context.output.table(JOB_HEAD, [job_row(job) for job in found])
    return OK


def _configure_cancel(parser: argparse.ArgumentParser) -> None:
    job_id(parser)
    parser.add_argument("--wait", action="store_true", help="wait until it has ended")


def _cancel(context: Context) -> int:
    with context.connect() as client:
        job = client.cancel(found_id(client, context.arguments.job))
        if context.arguments.wait and not is_terminal(job):
            for _ in client.stream_events(job, after_seq=job.last_seq, kinds=["state"]):
                pass
            job = client.job(job)
    return _report_state(context, job)


def _configure_resume(parser: argparse.ArgumentParser) -> None:
    job_id(parser)
    parser.add_argument("--watch", action="store_true", help="follow the job until it ends")


def _resume(context: Context) -> int:
    with context.connect() as client:
        job = client.resume(found_id(client, context.arguments.job))
        if context.arguments.watch:
            return _follow(client, job, context.output)
    return _report_state(context, job)


def _configure_delete(parser: argparse.ArgumentParser) -> None:
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("job", nargs="?", help="id of an ended job")
    target.add_argument("--model", metavar="NAME@VERSION", help="a model that is not loaded")


def _delete(context: Context) -> int:
    arguments = context.arguments
    with context.connect() as client:
        if arguments.model:
            deleted = arguments.model
            client.delete_model(deleted)
        else:
            deleted = found_id(client, arguments.job)
            client.delete_job(deleted)
    context.output.done({"deleted": deleted}, f"{deleted}  deleted")
    return OK


def _configure_plot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("jobs", nargs="+", metavar="JOB", help="ids of training jobs")
    parser.add_argument("--out", default="loss.png", metavar="FILE.png", help="default loss.png")
    parser.add_argument("--log", action="store_true", help="logarithmic loss axis")


def _plot(context: Context) -> int:
    """Plots the jobs that it can; exits 1 if one is missing."""
    arguments, output = context.arguments, context.output
    curves: list[Curve] = []
    failures: list[MultigrainClientError] = []
    with context.connect() as client, OutputFile(arguments.out) as file:
        for text in arguments.jobs:
            try:
                job = find(client, text)
                points = latest_curve(client.stream_losses(job, follow=False))
            except MultigrainClientError as error:
                failures.append(error)
                continue
            curves.append(Curve(job.name or job.job_id, points))
        if not curves:
            raise failures[0]
        note = plot_losses(curves, file.stream, log=arguments.log)
        file.finish()
    if note:
        output.note(note)
    for failure in failures:
        output.client_error(failure)
    output.done(
        {"file": stored_path(arguments.out), "points": [len(c.points) for c in curves]},
        f"{arguments.out}: {sum(len(c.points) for c in curves)} points",
        in_file=True,
    )
    return FAILED if failures else OK


COMMANDS = (
    Command(
        "train", "start a training job", _configure_train, _train, Result.SERVER, "StartTraining"
    ),
    Command(
        "watch", "show the progress of a job until it ends", _configure_watch, _watch, Result.OUTPUT
    ),
    Command("jobs", "list jobs, newest first, or show one", _configure_jobs, _jobs, Result.OUTPUT),
    Command(
        "evaluate",
        "start an evaluation job",
        _configure_evaluate,
        _evaluate,
        Result.SERVER,
        "StartEvaluation",
    ),
    Command(
        "export",
        "start an export job, which writes a model bundle",
        _configure_export,
        _export,
        Result.SERVER,
        "StartExport",
    ),
    Command(
        "cancel",
        "stop a job; a training job saves a checkpoint first",
        _configure_cancel,
        _cancel,
        Result.SERVER,
        "CancelJob",
    ),
    Command(
        "resume",
        "restart a failed or canceled job from its last checkpoint",
        _configure_resume,
        _resume,
        Result.SERVER,
        "ResumeJob",
    ),
    Command(
        "delete",
        "delete an ended job with its checkpoints, or a model, from disk",
        _configure_delete,
        _delete,
        Result.SERVER,
    ),
    Command(
        "plot",
        "plot the loss curves of training jobs as a PNG",
        _configure_plot,
        _plot,
        Result.FILE,
    ),
)


def _only_checked(arguments: argparse.Namespace) -> bool:
    return bool(arguments.dry_run or arguments.print_spec)


def _report_state(context: Context, job: Job) -> int:
    context.output.done(job, f"{job.job_id}  {state_name(job)}")
    return OK


def _started(context: Context, client: Client, job: Job) -> int:
    """Follows a new job if --watch is set, or prints its id; returns the exit code.

    Warnings, and the preset that the server has chosen, go to standard error.
    """
    if job.preset_reason:
        context.output.note(f"preset {job.preset_reason}")
    for warning in job.warnings:
        context.output.error(f"warning: {warning}")
    if context.arguments.print_spec:
        spec = getattr(job, str(job.WhichOneof("spec")))
        context.output.data(spec)
        for line in spec_yaml(spec):
            context.output.line(line)
        return OK
    if context.arguments.dry_run:
        context.output.done(job, f"would start: {kind_name(job).lower()} job {job.name or '-'}")
        return OK
    if context.arguments.watch:
        return _follow(client, job, context.output)
    context.output.done(
        job, f"{job.job_id}  started; follow it with: multigrain watch {job.job_id}"
    )
    return OK


def _follow(
    client: Client,
    job: Job,
    output: Output,
    *,
    after_seq: int = 0,
    every: int = 1,
    plain: bool = False,
) -> int:
    """Shows a job's events until it has ended.

    Raises:
        OutputError: if standard output cannot be written; the job continues.
        KeyboardInterrupt: with a note; it stops watching, not the job.

    Returns:
        exit code: 0 if the job has succeeded, 1 if not.
    """
    try:
        display = choose(output, job, every=every, plain=plain)
        with display:
            latest = show(client, job, display, after_seq=after_seq)
    except OutputError:
        raise OutputError(output.stream, f"no longer watching; {_continues(job)}") from None
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(f"no longer watching; {_continues(job)}")
        raise
    if state_name(latest) == "SUCCEEDED":
        return OK
    reason = latest.error.message or latest.state_message
    output.note(
        f"multigrain: job {latest.job_id} {state_name(latest)}" + (f": {reason}" if reason else "")
    )
    output.log_tail(latest.error.log_tail)
    return FAILED


def _continues(job: Job) -> str:
    return f"the job continues (multigrain watch {job.job_id}, multigrain cancel {job.job_id})"

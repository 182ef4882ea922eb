"""Commands that show what jobs have left: logs, results, checkpoints, files, and comparisons."""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from multigrain.v1.job_pb2 import Artifact, CheckpointEvent, Job
from multigrain_client.cli.arguments import OK, Command, Context, Result, find, job_id, positive
from multigrain_client.cli.output import duration, moment, size
from multigrain_client.errors import InvalidRequest, MultigrainClientError, NotFound
from multigrain_client.jobs import is_terminal, state_name
from multigrain_client.json_format import flatten, to_plain
from multigrain_client.sync.client import Client

# Seconds between two looks at a log that is followed.
_POLL_SECONDS = 1.0
_TAIL_BYTES = 256 << 10
_WORST = 20
_RESULTS = ("results/best", "results")


def _configure_logs(parser: argparse.ArgumentParser) -> None:
    job_id(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="until the job has ended")
    parser.add_argument(
        "--file",
        metavar="NAME",
        help="such as runner.log; default: worker_0.log, or runner.log without it",
    )
    parser.add_argument("--lines", type=positive, metavar="N", help="only the last N; default: all")


def _logs(context: Context) -> int:
    arguments = context.arguments
    with context.connect() as client:
        job = find(client, arguments.job)
        artifact = _log_file(client, job, arguments.file)
        start = max(0, artifact.bytes - _TAIL_BYTES) if arguments.lines else 0
        data = client.read_artifact(job, artifact.name, offset=start)
        offset = start + len(data)
        text, rest = _lines(data)
        if arguments.lines:
            text = text[-arguments.lines :]
        _write(context, text)
        while arguments.follow:
            ended = is_terminal(client.job(job))
            data = client.read_artifact(job, artifact.name, offset=offset)
            offset += len(data)
            text, rest = _lines(rest + data)
            _write(context, text)
            if ended and not data:
                break
            time.sleep(_POLL_SECONDS)
        if rest:
            _write(context, [rest.decode(errors="replace")])
    return OK


def _log_file(client: Client, job: Job, wanted: str | None) -> Artifact:
    """Raises:
    NotFound: if the job has no such log.
    """
    logs = {PurePosixPath(a.name).name: a for a in client.artifacts(job, kinds=["log"])}
    for name in [wanted] if wanted else ["worker_0.log", "runner.log"]:
        if name in logs:
            return logs[name]
    known = ", ".join(sorted(logs)) or "none yet"
    raise NotFound(f"job {job.job_id} has no log {wanted or ''}: there are {known}".strip())


def _lines(data: bytes) -> tuple[list[str], bytes]:
    """The whole lines, and what follows the last one."""
    *lines, rest = data.split(b"\n")
    return [line.decode(errors="replace") for line in lines], rest


def _write(context: Context, lines: Sequence[str]) -> None:
    for line in lines:
        if context.output.as_json:
            context.output.data({"line": line})
        else:
            context.output.line(line.expandtabs())


def _results(context: Context) -> int:
    output = context.output
    with context.connect() as client:
        job = find(client, context.arguments.job)
        names = {a.name for a in client.artifacts(job, kinds=["result"])}
        folder = next((f for f in _RESULTS if f"{f}/metrics.json" in names), None)
        if folder is None and not job.metrics:
            raise NotFound(
                f"job {job.job_id} has no results; evaluate it: "
                f"multigrain evaluate --job {job.job_id} --dataset DIR --watch"
            )
        body: dict[str, Any] = {"metrics": dict(job.metrics)}
        classes = list[dict[str, str]]()
        if folder is not None:
            body = _metrics(client.read_artifact(job, f"{folder}/metrics.json"), folder)
            if f"{folder}/classes.csv" in names:
                classes = _table(client.read_artifact(job, f"{folder}/classes.csv"), folder)
    output.data({**body, "folder": folder or "", "files": sorted(names), "classes": classes})
    which = " (best evaluation)" if folder == _RESULTS[0] else ""
    step = f", step {body['step']}{which}" if body.get("step") else ""
    output.line(f"{job.job_id} {job.name}{step}".rstrip())
    output.table(("METRIC", "VALUE"), [(k, f"{v:.4f}") for k, v in body["metrics"].items()])
    shown = [row for row in classes if row["top1"]]
    shown.sort(key=lambda row: float(row["top1"]))
    if shown:
        output.line()
        rows = [(r["class"], r["images"], f"{float(r['top1']):.4f}") for r in shown[:_WORST]]
        output.table(("CLASS", "IMAGES", "TOP-1"), rows)
        if len(shown) > _WORST:
            output.line(f"and {len(shown) - _WORST} more classes with a higher top-1")
    if names:
        output.line()
        output.line(f"files: multigrain artifacts {job.job_id} --kind result --out DIR")
    return OK


def _metrics(data: bytes, folder: str) -> dict[str, Any]:
    """The content of metrics.json. Raises MultigrainClientError if the file is damaged."""
    try:
        body = json.loads(data, parse_constant=str)
        body["metrics"] = {str(k): float(v) for k, v in body["metrics"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _damaged(f"{folder}/metrics.json") from None
    return dict(body)


def _table(data: bytes, folder: str) -> list[dict[str, str]]:
    """The rows of classes.csv. Raises MultigrainClientError if the file is damaged."""
    try:
        rows = list(csv.DictReader(data.decode(errors="replace").splitlines()))
        for row in rows:
            if None in row or None in row.values():  # more or fewer cells than the head
                raise ValueError
            if row["top1"]:
                float(row["top1"])
            row["class"], row["images"]
    except (csv.Error, KeyError, TypeError, ValueError):
        raise _damaged(f"{folder}/classes.csv") from None
    return rows


def _damaged(name: str) -> MultigrainClientError:
    return MultigrainClientError(
        f"{name} of the job is damaged: evaluate it again, or download the file with "
        "`multigrain artifacts`"
    )


def _checkpoints(context: Context) -> int:
    output = context.output
    with context.connect() as client:
        job = find(client, context.arguments.job)
        written: dict[str, CheckpointEvent] = {}
        for event in client.stream_events(job, follow=False, kinds=["checkpoint"]):
            written[event.checkpoint.name] = event.checkpoint
        files = client.artifacts(job, kinds=["checkpoint"])
    kept = {a.name.split("/")[1] for a in files if a.name.count("/") > 1}
    found = [event for name, event in written.items() if name in kept]
    best = job.best_checkpoint.name if job.HasField("best_checkpoint") else ""
    last = job.last_checkpoint.name if job.HasField("last_checkpoint") else ""
    output.data([to_plain(event) for event in found])
    rows = [
        (
            event.name,
            str(event.step),
            str(event.epoch),
            size(event.bytes),
            ", ".join(w for w, name in (("best", best), ("last", last)) if name == event.name),
        )
        for event in found
    ]
    output.table(("CHECKPOINT", "STEP", "EPOCH", "SIZE", ""), rows)
    if not found:
        output.line(f"no checkpoints of job {job.job_id} are kept")
    return OK


def _configure_artifacts(parser: argparse.ArgumentParser) -> None:
    job_id(parser)
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as results/images.csv")
    parser.add_argument(
        "--kind",
        dest="kinds",
        action="append",
        choices=("result", "log", "checkpoint"),
        help="only files of this kind; repeatable",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="download them into this folder; without it, list them"
    )


def _artifacts(context: Context) -> int:
    arguments, output = context.arguments, context.output
    with context.connect() as client:
        job = find(client, arguments.job)
        found = client.artifacts(job, kinds=arguments.kinds or ())
        if arguments.names:
            known = {artifact.name: artifact for artifact in found}
            unknown = [name for name in arguments.names if name not in known]
            if unknown:
                raise NotFound(
                    f"job {job.job_id} has no file {unknown[0]}; "
                    f"`multigrain artifacts {job.job_id}` lists them"
                )
            found = [known[name] for name in arguments.names]
        if arguments.out is None:
            output.data([to_plain(artifact) for artifact in found])
            rows = [(a.name, size(a.bytes), moment(a.modify_time)) for a in found]
            output.table(("FILE", "SIZE", "WRITTEN"), rows)
            return OK
        for artifact in found:
            path = _inside(Path(arguments.out), artifact.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            client.download_artifact(job, artifact.name, path)
            output.line(f"{path}  {size(artifact.bytes)}")
        output.data({"folder": arguments.out, "files": [artifact.name for artifact in found]})
    return OK


def _inside(folder: Path, name: str) -> Path:
    """Where a file goes; the server is not trusted with the choice.

    Raises:
        InvalidRequest: if it would be outside of the folder.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise InvalidRequest(f"the server names a file outside of {folder}: {name}")
    return folder.joinpath(*parts)


def _configure_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("jobs", nargs="+", metavar="JOB", help="ids of two or more jobs")


def _compare(context: Context) -> int:
    output = context.output
    if len(context.arguments.jobs) < 2:
        raise InvalidRequest("give two or more jobs; `multigrain jobs` lists them")
    with context.connect() as client:
        jobs = [find(client, text) for text in context.arguments.jobs]
    specs = [flatten(_spec(job)) for job in jobs]
    metrics = list(dict.fromkeys(name for job in jobs for name in job.metrics))
    names = dict.fromkeys(name for spec in specs for name in spec)
    settings = {
        name: values
        for name in names
        if len(set(values := tuple(spec.get(name, "-") for spec in specs))) > 1
    }
    output.data(
        {
            "jobs": [job.job_id for job in jobs],
            "metrics": {name: [_metric(job, name) for job in jobs] for name in metrics},
            "settings": {name: list(values) for name, values in settings.items()},
        }
    )
    rows = [
        ("name", *(job.name or "-" for job in jobs)),
        ("state", *(state_name(job) for job in jobs)),
        ("duration", *(_duration(job) for job in jobs)),
        (
            "best checkpoint",
            *(
                f"step {job.best_checkpoint.step}" if job.HasField("best_checkpoint") else "-"
                for job in jobs
            ),
        ),
        ("loss", *(f"{j.last_loss.loss:.4f}" if j.HasField("last_loss") else "-" for j in jobs)),
    ]
    for name in metrics:
        measured = [_metric(job, name) for job in jobs]
        rows.append((name, *("-" if value is None else f"{value:.4f}" for value in measured)))
    rows += [(name, *values) for name, values in settings.items()]
    output.table(("", *(job.job_id for job in jobs)), rows)
    return OK


def _metric(job: Job, name: str) -> float | None:
    return job.metrics.get(name)


def _duration(job: Job) -> str:
    if not (job.HasField("start_time") and job.HasField("end_time")):
        return "-"
    return duration(job.end_time.ToSeconds() - job.start_time.ToSeconds())


def _spec(job: Job) -> Mapping[str, Any]:
    which = job.WhichOneof("spec")
    return to_plain(getattr(job, which)) if which else {}


def _configure_presets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="a preset, to show its fields")


def _presets(context: Context) -> int:
    """Those of this installation: a server of another version may have others."""
    from multigrain.strict_yaml import load_yaml_file

    output = context.output
    folder = resources.files("multigrain").joinpath("specs", "presets")
    with resources.as_file(folder) as path:
        presets = {file.stem: load_yaml_file(file) for file in sorted(path.glob("*.yaml"))}
    wanted = context.arguments.name
    if wanted is None:
        rows = [(name, str(values["description"])) for name, values in presets.items()]
        output.data([{"name": name, "description": text} for name, text in rows])
        output.table(("PRESET", "FOR"), rows)
        return OK
    if wanted not in presets:
        raise InvalidRequest(f"no preset {wanted!r}: there are {', '.join(presets)}")
    chain = [wanted]
    while base := presets[chain[-1]].get("extends"):
        chain.append(str(base))
    fields: dict[str, str] = {}
    for name in reversed(chain):
        fields |= flatten(presets[name])
    description = fields.pop("description")
    fields.pop("extends", None)
    output.data({"name": wanted, "description": presets[wanted]["description"], "fields": fields})
    output.line(f"{wanted}: {description}")
    output.table(("FIELD", "VALUE"), list(fields.items()))
    return OK


COMMANDS = (
    Command("logs", "print a log of a job", _configure_logs, _logs, Result.OUTPUT, "GetArtifact"),
    Command(
        "results", "show metrics and accuracy by class of a job", job_id, _results, Result.OUTPUT
    ),
    Command("checkpoints", "list the checkpoints of a job", job_id, _checkpoints, Result.OUTPUT),
    Command(
        "artifacts",
        "list or download the files of a job",
        _configure_artifacts,
        _artifacts,
        Result.OUTPUT,
        "ListArtifacts",
    ),
    Command(
        "compare",
        "compare jobs: metrics, and the settings that differ",
        _configure_compare,
        _compare,
        Result.OUTPUT,
    ),
    Command(
        "presets", "list the presets, or show one", _configure_presets, _presets, Result.OUTPUT
    ),
)

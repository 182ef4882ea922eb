"""The pages of a running daemon, over HTTP."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from pathlib import Path

import grpc.aio
import pytest

from multigrain.events.records import EvaluationRecord, JobState
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.specs.evaluation import EvaluationSpec
from multigrain.v1.job_pb2 import StreamEventsRequest
from multigrain.v1.job_pb2_grpc import JobServiceStub
from multigrain.v1.training_pb2 import StartTrainingRequest
from multigrain.v1.training_pb2_grpc import TrainingServiceStub
from multigrain.v1.training_spec_pb2 import DatasetSpec, TrainingSpec
from multigrain_server.app import App
from multigrain_server.jobs.job import Job, JobView
from multigrain_server.metrics.gpus import GpuReading
from multigrain_server.metrics.requests import CallSummary
from multigrain_server.status.event_log import CurvePoint, Message, latest_warnings
from multigrain_server.status.results import (
    ClassRow,
    LogTail,
    Mistake,
    ResultFiles,
    Results,
)
from multigrain_server.status.site import RUNS, RunQuery, _Run, render
from multigrain_server.status.snapshot import MAX_QUEUED, Device, Host, Snapshot
from tests.engine.bundles import write_bundle
from tests.server.status.documents import Document
from tests.server.status.records import TIME, job, line, loss, write

HOSTILE = "</style></script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&lt;\u202e\x00"


async def page(app: App, path: str) -> tuple[int, dict[str, str], str]:
    """Status, headers and body."""
    host, _, port = app.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: daemon\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    first, *rest = head.split("\r\n")
    headers = dict(row.split(": ", 1) for row in rest)
    return int(first.split(" ")[1]), headers, body


def snapshot(shown: Job, text: str) -> Snapshot:
    """A daemon that has one job of each kind, all the same, and ``text`` for a name."""
    return Snapshot(
        ready=True,
        embedding_ready=None,
        version="1",
        address=text,
        uptime_seconds=1.0,
        counts={},
        active=(shown,),
        active_more=1,
        queued=(shown,),
        queued_more=1,
        ended=(shown,),
        models=(),
        models_more=0,
        calls=(CallSummary(text, 1, 0, 0.1, 0.2),),
        inflight_items=0,
        queue_items=1,
        devices=(Device("cpu", 0, text),),
        devices_more=0,
        host=Host(1, 0.5, 1, 2, 1, 2, (GpuReading(0, 0.5, 1, 2),)),
    )


def run(text: str, messages: list[Message]) -> _Run:
    """What a job's folder says, with ``text`` wherever a dataset or a library may have a say."""
    points = tuple(CurvePoint(1, step, 1 / step, 0.5, 0.5, 0.1, 1) for step in range(1, 5))
    evaluations = tuple(EvaluationRecord({text: 0.1 * step}, step) for step in range(1, 5))
    results = Results(
        step=4,
        best=True,
        classes=(ClassRow(text, 3, 1),),
        names=(text, text),
        matrix=((1, 2), (0, 3)),
        confused=((text, text, 2),),
        mistakes=(Mistake(text, text, text, 0.5),),
        wrong=2,
    )
    return _Run(points, evaluations, results, (LogTail("worker_0.log", 9, text),), tuple(messages))


async def start(channel: grpc.aio.Channel, dataset: Path, name: str, **labels: str) -> str:
    spec = TrainingSpec(preset="digits-demo", dataset=DatasetSpec(train_path=str(dataset)))
    spec.dataset.val_path = ""
    request = StartTrainingRequest(name=name, labels=labels, spec=spec)
    return (await TrainingServiceStub(channel).StartTraining(request)).job_id


async def until_ended(channel: grpc.aio.Channel, job_id: str) -> None:
    request = StreamEventsRequest(job_id=job_id, follow=True)
    async for _ in JobServiceStub(channel).StreamEvents(request):
        pass


async def test_headers_of_the_models_say_what_they_are_of(app: App) -> None:
    write_bundle(app.config.data_dir / "models")
    app.models.publish()
    shown = Document((await page(app, "/"))[2]).text
    assert "\nMean time\n" in shown
    assert "\nLast request\n" in shown


async def test_jobs_appear_in_every_state(
    app: App, channel: grpc.aio.Channel, dataset: Path
) -> None:
    done = await start(channel, dataset, "done one", events="8")
    await until_ended(channel, done)
    failed = await start(channel, dataset, "failed one", end="FAILED")
    await until_ended(channel, failed)
    async with asyncio.timeout(60):
        while app._supervisor.active:  # noqa: ASYNC110 - it ends by itself
            await asyncio.sleep(0.01)
    await start(channel, dataset, "running one", events="100000", pause="0.02")
    await start(channel, dataset, "waiting one")
    async with asyncio.timeout(60):
        while "step 1" not in (shown := Document((await page(app, "/"))[2])).text:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    running, queue, ended = (
        shown.text.index(f"\n{part}\n") for part in ("Running jobs", "Queue", "Ended jobs")
    )
    assert running < shown.text.index("running one") < queue
    assert queue < shown.text.index("waiting one") < shown.text.index("waiting for a free CPU slot")
    assert ended < shown.text.index("failed one") < shown.text.index("done one")
    assert "DIVERGED: the loss is non-finite" in shown.text
    assert len(shown.of("svg")) == 3  # of all but the one that waits
    status, _, body = await page(app, f"/jobs/{failed}")
    assert status == 200
    assert "the loss is non-finite" in body
    assert "(rank 1)" in body


async def test_names_from_clients_are_escaped(
    app: App, channel: grpc.aio.Channel, dataset: Path
) -> None:
    job_id = await start(channel, dataset, "<script>alert(1)</script>", x="<img src=x>")
    await until_ended(channel, job_id)
    for path in ("/", f"/jobs/{job_id}"):
        status, _, body = await page(app, path)
        shown = Document(body)
        assert status == 200
        assert not shown.of("script") + shown.of("img")
        assert "<script>alert(1)</script>" in shown.text


@pytest.mark.parametrize("state", list(JobState))
def test_hostile_text_changes_no_element_of_a_page(state: JobState) -> None:
    def pages(text: str) -> list[str]:
        messages = [Message(TIME, "ERROR", 0, text)]
        shown = job(text, state)
        return [
            render("job", "/", live=False, job=shown, run=run(text, messages)),
            render(
                "runs",
                "/jobs",
                live=False,
                jobs=[shown],
                more="x",
                query=RunQuery(state="FAILED", kind="TRAINING", label=text, name=text),
                error="",
            ),
            render("missing", "/jobs", live=False, message=text),
            render(
                "compare",
                "/compare",
                live=False,
                jobs=[shown, shown],
                points=[run(text, []).points] * 2,
                evaluations=[run(text, []).evaluations] * 2,
            ),
            render("overview", "/", live=False, snapshot=snapshot(shown, text), curves={}),
        ]

    for tame, hostile in zip(pages("tame"), pages(HOSTILE), strict=True):
        assert Document(hostile).shape == Document(tame).shape
        assert "<script>alert(1)</script>" in Document(hostile).text
        assert "\u202e" not in hostile
        assert "\x00" not in hostile


async def test_pages_are_self_contained(app: App) -> None:
    _, headers, body = await page(app, "/")
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    style = re.search(r"<style>(.*?)</style>", body, re.S)
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    shown = Document(body)
    for element in shown.elements:
        target = element.attributes.get("href") or element.attributes.get("src") or "/"
        assert target.startswith(("/", "data:")), element
        assert not [name for name in element.attributes if name.startswith("on")]
        assert "style" not in element.attributes
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"


async def test_pages_are_accessible_to_screen_readers(
    app: App, channel: grpc.aio.Channel, dataset: Path
) -> None:
    await until_ended(channel, await start(channel, dataset, "one"))
    shown = Document((await page(app, "/"))[2])
    assert shown.of("html")[0].attributes["lang"] == "en"
    assert len(shown.of("h1")) == len(shown.of("main")) == 1
    assert all(cell.attributes["scope"] in ("row", "col") for cell in shown.of("th"))
    assert len(shown.of("caption")) == len(shown.of("table")) > 0
    ids = [e.attributes["id"] for e in shown.elements if "id" in e.attributes]
    assert len(set(ids)) == len(ids)
    for section in shown.of("section"):
        assert section.attributes["aria-labelledby"] in ids
    for tag in ("svg", "meter", "progress"):
        assert all(element.attributes["aria-label"] for element in shown.of(tag))


async def test_refresh_can_be_paused_and_resumed(app: App) -> None:
    def refreshes(body: str) -> bool:
        return any("http-equiv" in element.attributes for element in Document(body).of("meta"))

    live, paused = (await page(app, "/"))[2], (await page(app, "/?live=0"))[2]
    assert refreshes(live)
    assert 'href="/?live=0"' in live
    assert not refreshes(paused)
    assert 'href="/"' in paused


async def test_other_paths_are_not_found(app: App) -> None:
    for path in (
        "/jobs/",
        "/jobs/none",
        "/jobs/..%2f..%2fstate.db",
        "/jobs/%00",
        "/compare/x",
        "/x",
    ):
        assert (await page(app, path))[0] == 404, path


async def test_an_unknown_job_has_a_page_that_leads_on(app: App) -> None:
    status, _, body = await page(app, "/jobs/nope")
    assert status == 404
    assert 'no job "nope"' in Document(body).text
    assert "multigrain jobs" in body
    assert 'href="/jobs"' in body


async def test_empty_pages_say_what_to_type(app: App) -> None:
    for path in ("/", "/jobs"):
        assert "multigrain train --train DIR --watch" in (await page(app, path))[2]


async def test_all_jobs_are_listed_in_pages_and_filtered(
    app: App, channel: grpc.aio.Channel, dataset: Path
) -> None:
    ids = [await start(channel, dataset, f"run {n}", events="1", team="a b") for n in range(3)]
    ids.append(await start(channel, dataset, "another", events="1"))
    for job_id in ids:
        await until_ended(channel, job_id)
    for number in range(RUNS):
        request = JobRequest(
            job_id=f"eval-{number}",
            kind=JobKind.EVALUATION,
            create_time="2020-01-31T12:00:00Z",
            evaluation=EvaluationSpec(),
        )
        app._store.insert(request, JobView(state=JobState.FAILED), 0)
    seen = list[str]()
    path = "/jobs"
    while path:
        status, _, body = await page(app, path)
        assert status == 200
        boxes = Document(body).of("input")
        seen += [str(b.attributes["value"]) for b in boxes if b.attributes["name"] == "job"]
        older = re.findall(r'href="([^"]*)">Older', body)
        path = older[0].replace("&amp;", "&") if older else ""
    assert len(seen) == len(set(seen)) == 4 + RUNS
    assert set(ids) < set(seen)
    for query, count in (
        ("name=RUN", 3),
        ("label=team%3Da+b", 3),
        ("state=SUCCEEDED&name=run", 3),
        ("kind=TRAINING", 4),
        ("state=RUNNING", 0),
    ):
        status, _, body = await page(app, f"/jobs?{query}")
        assert status == 200
        assert body.count('type="checkbox"') == count, query
        assert ("No job matches" in body) == (count == 0)
    for query in ("state=foo", "label=x", "page=x", "kind=%3Cb%3E"):
        status, _, body = await page(app, f"/jobs?{query}")
        assert status == 400
        assert 'class="reason"' in body


async def test_runs_are_compared(app: App, channel: grpc.aio.Channel, dataset: Path) -> None:
    ids = []
    for seed in range(2):
        spec = TrainingSpec(preset="digits-demo", dataset=DatasetSpec(train_path=str(dataset)))
        spec.dataset.val_path, spec.seed = "", seed
        request = StartTrainingRequest(name=f"seed {seed}", labels={"events": "8"}, spec=spec)
        ids.append((await TrainingServiceStub(channel).StartTraining(request)).job_id)
        await until_ended(channel, ids[-1])
    status, _, body = await page(app, f"/compare?job={ids[0]}&job={ids[1]}")
    shown = Document(body)
    assert status == 200
    assert "Training loss" in shown.text
    assert len(shown.of("path")) == 2
    differing = shown.text.partition("Settings that differ")[2]
    assert re.search(r"\nseed\n\s*0\n\s*1\n", differing)
    assert "schedule.epochs" not in differing
    assert (await page(app, f"/compare?job={ids[0]}"))[0] == 400
    assert (await page(app, f"/compare?job={ids[0]}&job=nope"))[0] == 404


@pytest.mark.process
async def test_a_run_shows_its_settings_curves_results_and_logs(
    app: App, channel: grpc.aio.Channel, dataset: Path
) -> None:
    job_id = await start(channel, dataset, "one", events="8")
    await until_ended(channel, job_id)
    folder = app.jobs.folder(job_id)
    write_results(folder.results / "best", step=7)
    (folder.logs / "worker_0.log").write_text("the first line\n<b>the last line</b>\n")
    with folder.events.open("a") as log:
        for number, top1 in ((100, 0.25), (101, 0.5)):
            log.write(line(number, evaluation={"metrics": {"top1": top1}, "step": number - 96}))
    status, _, body = await page(app, f"/jobs/{job_id}")
    shown = Document(body)
    assert status == 200
    assert "<b>the last line</b>" in shown.text
    for title in ("Loss", "Validation", "Learning rate"):
        assert f"\n{title}\n" in shown.text
    assert "best evaluation, step 7" in shown.text
    assert "dataset.train_path" in shown.text
    # Only that of the dataset is shown; the others are outside of it or no images.
    pictures = [str(image.attributes["src"]) for image in shown.of("img")]
    assert len(pictures) == 1
    assert pictures[0].startswith("data:image/jpeg;base64,/9j/")
    assert shown.text.count("no picture") == 2
    assert re.search(r"cat\s+taken for\s+dog\s+\(90%\)", shown.text)
    assert "http-equiv" not in body


def write_results(results: Path, step: int) -> None:
    """Those of three mistakes: an image of ``dataset``, one outside of it and none at all."""
    results.mkdir(parents=True)
    files = {
        "metrics.json": json.dumps({"step": step, "metrics": {"top1": 0.5}}),
        "classes.csv": "class,images,recognised,top1\ncat,4,1,0.25\ndog,2,2,1.0\n",
        "confusion.csv": "true \\ predicted,cat,dog\ncat,1,3\ndog,0,2\n",
        "images.csv": "path,class,read,predicted,rank,loss,probability\n"
        "cat/0.png,cat,1,dog,1,2.3,0.9\n"
        "../secret.png,cat,1,dog,1,2.3,0.8\n"
        "cat/none.png,cat,1,dog,1,2.3,0.7\n"
        "cat/1.png,cat,1,cat,0,0.1,0.9\n"
        "cat/unread.png,cat,0,,,,\n",
    }
    for name, text in files.items():
        (results / name).write_text(text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.json", "[]"),
        ("metrics.json", '{"step": 1e999}'),
        ("metrics.json", '{"step": {}}'),
        ("metrics.json", "[" * 100_000),
        ("classes.csv", "class,images,recognised\na,1" + "0" * 400 + ",1\n"),
        ("classes.csv", "class,images,recognised\na,-3,1\n"),
        ("classes.csv", "class,images,recognised\n" + "x" * 200_000 + ",1,1\n"),
        ("classes.csv", "class\na\n"),
        ("confusion.csv", "true,a,b\na,1\n"),
        ("confusion.csv", "true,a,b\na,1,2\nb,3,4,5\n"),
        ("confusion.csv", "true,a,b\na,1,2\nb,3,1" + "0" * 400 + "\n"),
        ("images.csv", "read,path,class,predicted\n1,x,a\n"),
        ("images.csv", "read,path,class,predicted,probability\n1,x,a,b,nan\n"),
        ("images.csv", "read,path,class,predicted,probability\n1,x,a,b,1e308\n"),
    ],
)
@pytest.mark.usefixtures("csv_limit")
def test_damaged_results_are_left_out(tmp_path: Path, name: str, text: str) -> None:
    folder = JobFolder(tmp_path)
    request = JobRequest(job_id="e", kind=JobKind.EVALUATION, create_time=TIME)
    write_results(folder.results, 3)
    assert ResultFiles().of(request, folder) is not None
    (folder.results / name).write_text(text)
    assert ResultFiles().of(request, folder) is None


async def test_page_size_does_not_grow_with_the_queue(
    app: App, channel: grpc.aio.Channel, dataset: Path
) -> None:
    await start(channel, dataset, "first", events="100000", pause="0.05")
    for number in range(MAX_QUEUED + 5):
        await start(channel, dataset, f"queued {number}")
    _, _, body = await page(app, "/")
    text = Document(body).text
    assert text.count("waiting for a free CPU slot") <= MAX_QUEUED
    assert "more queued" in text


def test_warnings_come_from_the_end_of_the_log_newest_first(tmp_path: Path) -> None:
    old = line(1, log={"level": "ERROR", "message": "too far back", "rank": 0})
    filling = [line(n, loss=loss(n)) for n in range(2, 1500)]
    newer = [
        line(1500, log={"level": "WARNING", "message": "one", "rank": 0}),
        line(1501, log={"level": "INFO", "message": "two", "rank": 0}),
        line(1502, log={"level": "ERROR", "message": "three"}),
        line(1503, log={"level": "ERROR", "message": "torn"}).rstrip("\n"),
    ]
    path = write(tmp_path / "events", old, *filling, *newer)
    assert path.stat().st_size > 1 << 18
    assert [(m.level, m.rank, m.text) for m in latest_warnings(path)] == [
        ("ERROR", -1, "three"),
        ("WARNING", 0, "one"),
    ]
    assert latest_warnings(tmp_path / "none") == ()

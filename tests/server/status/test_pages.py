"""The pages of a running daemon, over HTTP."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from pathlib import Path

import grpc.aio
import pytest

from multigrain.events.records import JobState
from multigrain.v1.job_pb2 import StreamEventsRequest
from multigrain.v1.job_pb2_grpc import JobServiceStub
from multigrain.v1.training_pb2 import StartTrainingRequest
from multigrain.v1.training_pb2_grpc import TrainingServiceStub
from multigrain.v1.training_spec_pb2 import DatasetSpec, TrainingSpec
from multigrain_server.app import App
from multigrain_server.jobs.job import Job
from multigrain_server.metrics.requests import CallSummary
from multigrain_server.status.event_log import Message, latest_warnings
from multigrain_server.status.gpus import GpuReading
from multigrain_server.status.site import render
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
            render("job", "/", live=False, job=shown, points=[], warnings=messages),
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
    for path in ("/jobs/", "/jobs/none", "/jobs/..%2f..%2fstate.db", "/jobs/%00", "/jobs", "/x"):
        assert (await page(app, path))[0] == 404, path


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

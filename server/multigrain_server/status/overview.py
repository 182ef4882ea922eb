"""The first page: everything at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from multigrain_server.status.chart import sparkline
from multigrain_server.status.curve import CurvePoint
from multigrain_server.status.job_card import outcome, running_card
from multigrain_server.status.markup import Child, Markup, element, join
from multigrain_server.status.parts import (
    badge,
    columns,
    job_link,
    job_path,
    meter,
    more,
    section,
    shortened,
    table,
)
from multigrain_server.status.snapshot import Device, Host, ModelRow, Snapshot
from multigrain_server.status.words import ago, count, duration, milliseconds, size

CurvesOf = Mapping[str, Sequence[CurvePoint]]


def render(snapshot: Snapshot, curves: CurvesOf, now: datetime) -> Markup:
    """The body of the page; ``curves`` by the ids of the jobs shown."""
    return join(
        _header(snapshot),
        element(
            "main",
            _tiles(snapshot),
            _running(snapshot, curves, now),
            _queue(snapshot, now),
            _models(snapshot, now),
            _calls(snapshot),
            _ended(snapshot, curves, now),
            element("div", _devices(snapshot), _host(snapshot.host), class_="pair"),
        ),
    )


def _header(snapshot: Snapshot) -> Markup:
    state = "ready" if snapshot.ready else "draining"
    up = duration(snapshot.uptime_seconds)
    return element(
        "header",
        element("h1", "multigrain"),
        element("p", badge(state), role="status"),
        element(
            "p",
            f"{snapshot.version} · gRPC {snapshot.address} · up {up}",
            class_="muted",
        ),
    )


def _tiles(snapshot: Snapshot) -> Markup:
    counts = snapshot.counts
    running = sum(counts.get(state, 0) for state in ("STARTING", "RUNNING", "STOPPING"))
    loaded = sum(row.statistics is not None for row in snapshot.models)
    serving = {None: "no model", True: "answering", False: "not answering"}
    tiles: tuple[tuple[str, Child, str], ...] = (
        ("Jobs running", count(running), f"{counts.get('QUEUED', 0)} queued"),
        (
            "Jobs succeeded",
            count(counts.get("SUCCEEDED", 0)),
            f"{counts.get('FAILED', 0)} failed, {counts.get('CANCELLED', 0)} cancelled",
        ),
        ("Models loaded", count(loaded), serving[snapshot.embedding_ready]),
        (
            "Images in work",
            count(snapshot.inflight_items),
            f"of {count(snapshot.queue_items)} at most",
        ),
    )
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value), element("dd", note))
            for name, value, note in tiles
        ),
        class_="tiles",
    )


def _running(snapshot: Snapshot, curves: CurvesOf, now: datetime) -> Markup:
    if not snapshot.active:
        return section("Running jobs", element("p", "No job is running.", class_="muted"))
    cards = [running_card(job, curves.get(job.job_id, ()), now) for job in snapshot.active]
    return section(
        "Running jobs",
        element("div", *cards, class_="cards"),
        more(snapshot.active_more, "running"),
    )


def _queue(snapshot: Snapshot, now: datetime) -> Markup | None:
    if not snapshot.queued:
        return None
    rows = [
        (
            job_link(job),
            job.request.kind.lower(),
            ago(job.view.queued_time, now),
            shortened(job.state_message),
        )
        for job in snapshot.queued
    ]
    return section(
        "Queue",
        table("Jobs that wait, next first", columns("Job", "Kind", "Queued", "Waits for"), rows),
        more(snapshot.queued_more, "queued"),
    )


def _ended(snapshot: Snapshot, curves: CurvesOf, now: datetime) -> Markup | None:
    if not snapshot.ended:
        return None
    rows = [
        (
            job_link(job),
            badge(job.state.value),
            job.request.kind.lower(),
            ago(job.view.end_time, now),
            sparkline(curves.get(job.job_id, ())),
            outcome(job),
        )
        for job in snapshot.ended
    ]
    heads = columns("Job", "State", "Kind", "Ended", "Loss", "Outcome")
    return section("Ended jobs", table("The newest jobs that ended", heads, rows))


def _models(snapshot: Snapshot, now: datetime) -> Markup:
    if not snapshot.models:
        return section("Models", element("p", "There is no model yet.", class_="muted"))
    heads = columns(
        "Model", "State", "Runtime", "#Requests", "#Failed", "#Images", "#Mean", "#Last"
    )
    return section(
        "Models",
        table(
            "Models, those in service first",
            heads,
            [_model(row, now) for row in snapshot.models],
        ),
        more(snapshot.models_more, "models"),
        note="counts since each was loaded",
    )


def _model(row: ModelRow, now: datetime) -> Sequence[Child]:
    view, done = row.view, row.statistics
    marks = [*(["default"] if row.default else []), *view.aliases[:4]]
    name = join(
        str(view.entry.version),
        *(element("span", shortened(mark, 40), class_="mark") for mark in marks),
    )
    state = join(badge(view.state.value), shortened(f" {view.message}" if view.message else ""))
    if done is None:
        return name, state, "", "", "", "", "", ""
    mean = milliseconds(done.success.ns / done.success.count / 1e9) if done.success.count else ""
    last = datetime.fromtimestamp(done.last_ms / 1000, now.tzinfo).isoformat()
    return (
        name,
        state,
        shortened(view.runtime.partition(" (")[0], 60),
        count(done.success.count),
        count(done.fail.count),
        count(done.images),
        mean,
        ago(last, now) if done.last_ms else "",
    )


def _calls(snapshot: Snapshot) -> Markup | None:
    if not snapshot.calls:
        return None
    rows = [
        (
            call.rpc,
            count(call.answered),
            count(call.failed),
            milliseconds(call.median),
            milliseconds(call.p99),
        )
        for call in snapshot.calls
    ]
    heads = columns("Call", "#Answered", "#Failed", "#Median", "#p99")
    return section(
        "Calls",
        table("Calls, the most frequent first", heads, rows),
        note="since the daemon started",
    )


def _devices(snapshot: Snapshot) -> Markup:
    return section(
        "Devices",
        element("ul", *(_device(device) for device in snapshot.devices), class_="devices"),
        more(snapshot.devices_more, "devices"),
    )


def _device(device: Device) -> Markup:
    name = "CPU slot" if device.kind == "cpu" else device.kind.upper()
    owner: Child = "free"
    if device.owner:
        engine = device.owner.startswith("engine ")
        owner = shortened(device.owner, 80)
        if not engine:
            owner = element("a", owner, href=job_path(device.owner))
    return element(
        "li",
        element("b", f"{name} {device.unit}"),
        " ",
        owner,
        class_="leased" if device.owner else None,
    )


def _host(host: Host) -> Markup:
    bars = [
        meter("CPU load", host.load / host.cores, f"{host.load:.1f} of {host.cores} cores"),
        meter(
            "Memory",
            host.memory_used / host.memory_total,
            f"{size(host.memory_used)} of {size(host.memory_total)}",
        ),
        meter(
            "Disk of the data",
            host.disk_used / host.disk_total,
            f"{size(host.disk_total - host.disk_used)} free",
        ),
    ]
    for gpu in host.gpus:
        bars.append(meter(f"GPU {gpu.index}", gpu.utilization, f"{gpu.utilization:.0%} busy"))
        bars.append(
            meter(
                f"GPU {gpu.index} memory",
                gpu.memory_used / gpu.memory_total,
                f"{size(gpu.memory_used)} of {size(gpu.memory_total)}",
            )
        )
    return section("Host", element("dl", *bars))

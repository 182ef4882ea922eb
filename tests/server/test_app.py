"""The parts work together."""

from __future__ import annotations

from pathlib import Path

import grpc.aio
import pytest

from multigrain.v1.export_pb2 import StartExportRequest
from multigrain.v1.export_pb2_grpc import ExportServiceStub
from multigrain.v1.export_spec_pb2 import ExportSpec
from multigrain.v1.job_pb2 import StreamEventsRequest
from multigrain.v1.job_pb2_grpc import JobServiceStub
from multigrain_server.app import App


@pytest.mark.parametrize(("end", "looks"), [("SUCCEEDED", 1), ("FAILED", 0)])
async def test_the_registry_looks_again_after_an_export_that_succeeded(
    app: App,
    channel: grpc.aio.Channel,
    dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
    looks: int,
) -> None:
    rescans: list[int] = []
    monkeypatch.setattr(app.models, "rescan", lambda: rescans.append(1))
    spec = ExportSpec(model_name="m")
    spec.weights.checkpoint_path = str(dataset)
    request = StartExportRequest(spec=spec, labels={"end": end})
    job = await ExportServiceStub(channel).StartExport(request)
    follow = StreamEventsRequest(job_id=job.job_id, follow=True)
    async for _ in JobServiceStub(channel).StreamEvents(follow):
        pass
    await app.until_idle()
    assert len(rescans) == looks


async def test_a_daemon_that_has_stopped_may_be_abandoned_all_the_same(
    app: App, tmp_path: Path
) -> None:
    """As by a second signal that comes when the first has nearly done its work."""
    await app.stop()
    file_in_its_place = (tmp_path / "later").open("w")
    await app.abandon()
    with file_in_its_place:  # not closed in place of the data directory's lock
        file_in_its_place.write("still open")

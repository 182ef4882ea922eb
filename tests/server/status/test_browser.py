"""The status page as a browser shows it. Without one, ``test_pages`` covers the rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from multigrain.jobs.runner_identity import RunnerIdentity
from multigrain.v1.job_pb2 import CancelJobRequest
from multigrain.v1.job_pb2_grpc import JobServiceStub
from multigrain.v1.training_pb2 import StartTrainingRequest
from multigrain.v1.training_pb2_grpc import TrainingServiceStub
from multigrain.v1.training_spec_pb2 import DatasetSpec, TrainingSpec
from tests.server.process import DaemonProcess
from tests.server.status.browser import Browser

pytestmark = pytest.mark.process

NAME = "<script>document.title = 'taken'</script>"
CURVE = "return document.querySelectorAll('figure.chart path').length"


@pytest.fixture
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    data = tmp_path / "data"
    daemon = DaemonProcess(data, ["--data-root", str(tmp_path)], "tests.server.fake_daemon")
    daemon.wait_ready()
    yield daemon
    daemon.end()
    for path in data.glob("jobs/*/runner.json"):
        runner = RunnerIdentity.load(path)
        process = runner.process() if runner is not None else None
        if process is not None:
            process.kill()


@pytest.fixture
def channel(daemon: DaemonProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(daemon.wait_ready()) as channel:
        yield channel


def start(channel: grpc.Channel, dataset: Path, **labels: str) -> str:
    spec = TrainingSpec(preset="digits-demo", dataset=DatasetSpec(train_path=str(dataset)))
    spec.dataset.val_path = ""
    request = StartTrainingRequest(name=NAME, labels=labels, spec=spec)
    return TrainingServiceStub(channel).StartTraining(request, timeout=60).job_id


def test_live_page_in_a_browser_runs_no_script(
    browser: Browser, daemon: DaemonProcess, channel: grpc.Channel, dataset: Path
) -> None:
    job = start(channel, dataset, events="1000000", pause="0.02")
    url = f"http://{daemon.http_address()}/"
    browser.open(url)
    # The page reloads itself.
    browser.until(f"{CURVE} == 3")
    assert browser.run("return document.title") == "multigrain"
    assert browser.run("return document.querySelector('article a').textContent") == NAME
    JobServiceStub(channel).CancelJob(CancelJobRequest(job_id=job), timeout=60)
    browser.until("return document.querySelector('table .badge.cancelled') != null")
    assert browser.run("return document.querySelectorAll('svg.spark path').length") == 1

    browser.open(f"{url}jobs/{job}?live=0")
    assert browser.run("return document.scripts.length") == 0
    assert browser.run(CURVE) == 4  # the terms of the loss, and the learning rate
    assert "of 1,000,000" in browser.run("return document.body.innerText")

    ground = "return getComputedStyle(document.body).backgroundColor"
    light = browser.run(ground)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.emulate("Emulation.setEmulatedMedia", features=dark)
    assert browser.run(ground) not in (light, "rgba(0, 0, 0, 0)")

    phone = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.emulate("Emulation.setDeviceMetricsOverride", **phone)
    for path in ("?live=0", f"jobs/{job}?live=0", "jobs"):
        browser.open(url + path)
        assert browser.run("return [innerWidth, document.documentElement.scrollWidth]") == [
            360,
            360,
        ]
    assert browser.complaints() == []

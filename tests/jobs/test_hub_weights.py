"""The download of a library's weights before a job's first attempt."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from multigrain.jobs.hub_weights import fetch_weights
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.jobs.limits import StopSignal

pytestmark = pytest.mark.process


def request(target: Path, name: str = "timm:resnet18") -> JobRequest:
    return JobRequest(
        job_id="train-1",
        kind=JobKind.TRAINING,
        create_time="2026-01-31T12:00:00Z",
        weights_path=str(target),
        hub_weights=name,
    )


def program(text: str) -> list[str]:
    return [sys.executable, "-c", f"import sys, time\n{text}"]


WRITES = "open(sys.argv[2], 'w').write(sys.argv[1])"


def test_weights_are_fetched_once(tmp_path: Path) -> None:
    target = tmp_path / "w.safetensors"
    assert fetch_weights(request(target), StopSignal(), command=program(WRITES)) is None
    assert target.read_text() == "timm:resnet18"
    fails = program("sys.exit(9)")
    assert fetch_weights(request(target), StopSignal(), command=fails) is None
    assert fetch_weights(request(tmp_path / "no", ""), StopSignal(), command=fails) is None


@pytest.mark.parametrize(
    ("code", "kind"), [(3, "UNSUPPORTED"), (4, "NOT_FOUND"), (1, "INTERNAL"), (0, "INTERNAL")]
)
def test_the_reason_is_the_jobs_error(tmp_path: Path, code: int, kind: str) -> None:
    text = f"print('noise\\nwhy', file=sys.stderr); sys.exit({code})"
    failure = fetch_weights(request(tmp_path / "w"), StopSignal(), command=program(text))
    assert failure is not None
    assert (failure.error.kind, failure.error.message) == (kind, "why")


def test_a_download_that_hangs_ends(tmp_path: Path) -> None:
    hangs = program("time.sleep(1000)")
    failure = fetch_weights(request(tmp_path / "w"), StopSignal(), command=hangs, seconds=0.2)
    assert failure is not None
    assert "was not fetched within" in failure.error.message


def test_a_stop_ends_a_download(tmp_path: Path) -> None:
    stop, begun = StopSignal(), time.monotonic()
    threading.Timer(0.2, stop.request).start()
    hangs = program("time.sleep(1000)")
    assert fetch_weights(request(tmp_path / "w"), stop, command=hangs) is None
    assert time.monotonic() - begun < 100


def test_a_library_that_is_not_installed_is_named(tmp_path: Path) -> None:
    hidden = "sys.modules['timm'] = None\nfrom multigrain.weights.hub import main\nsys.exit(main())"
    failure = fetch_weights(request(tmp_path / "w"), StopSignal(), command=program(hidden))
    assert failure is not None
    assert failure.error.kind == "UNSUPPORTED"
    assert "pip install 'multigrain[hub]'" in failure.error.message

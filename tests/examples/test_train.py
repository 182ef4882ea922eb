from __future__ import annotations

import pytest

from examples import train
from tests.client.fake_server import FakeServer, FakeState


def test_train_prints_every_loss_of_the_run(
    server: FakeServer,
    state: FakeState,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state.finished_top1 = 0.9
    command = ["train", "/data/train", "--server", server.address, "--epochs", "2"]
    monkeypatch.setattr("sys.argv", command)
    train.main()
    spec = state.jobs["job-1"].training
    assert (spec.preset, spec.schedule.epochs) == ("digits-demo", 2)
    assert spec.dataset.train_path == "/data/train"
    first, *losses, last = capsys.readouterr().out.splitlines()
    assert first == "job job-1"
    events = [event.loss for event in state.events["job-1"] if event.HasField("loss")]
    assert len(losses) == len(events) > 0
    assert losses[0].endswith(f"loss {events[0].loss:.4f}")
    assert last == f"{len(events)} steps, loss {events[0].loss:.4f} -> {events[-1].loss:.4f}"

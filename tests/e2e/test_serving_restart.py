"""A daemon that serves is killed, started again, and stopped in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from multigrain.v1.embedding_pb2 import EmbedRequest
from multigrain.v1.embedding_pb2_grpc import EmbeddingServiceStub
from multigrain.v1.model_pb2 import MODEL_STATE_READY
from tests.e2e.daemon import Daemon, processes_below, wait_for_no_processes
from tests.engine.bundles import write_bundle
from tests.engine.pictures import picture

pytestmark = pytest.mark.process


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon with a small model on disk."""
    write_bundle(tmp_path / "data" / "models")
    server = Daemon(tmp_path).start()
    yield server
    server.end()


def test_engines_die_with_a_killed_daemon_and_are_restored_by_the_next(serving: Daemon) -> None:
    data = picture(1)
    with serving.client() as client:
        client.load_model("tiny")
        before = client.embed([data], model="tiny")
    # The daemon, the engine, the template of its decoder processes, and one of these or more.
    assert len(processes_below(serving.data_dir)) >= 4

    serving.kill()
    wait_for_no_processes(serving.data_dir)

    serving.start()
    with serving.client() as client:
        deadline = time.monotonic() + 60
        while not any(model.state == MODEL_STATE_READY for model in client.models()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        np.testing.assert_array_equal(client.embed([data], model="tiny"), before)


def test_a_stopped_daemon_answers_requests_in_flight_and_leaves_no_process_behind(
    serving: Daemon,
) -> None:
    codes: list[grpc.StatusCode] = []
    started = threading.Event()

    def caller() -> None:
        # Without retries, so that every lost request would be seen.
        with grpc.insecure_channel(serving.address, [("grpc.enable_retries", 0)]) as channel:
            embed = EmbeddingServiceStub(channel).Embed
            while not codes or codes[-1] is grpc.StatusCode.OK:
                try:
                    embed(EmbedRequest(images=[picture(1)] * 8), timeout=30)
                    codes.append(grpc.StatusCode.OK)
                except grpc.RpcError as error:
                    codes.append(error.code())
                started.set()

    with serving.client() as client:
        client.load_model("tiny")
    thread = threading.Thread(target=caller)
    thread.start()
    assert started.wait(60)
    assert serving.stop() == 0
    thread.join(120)
    assert codes[0] is grpc.StatusCode.OK
    # The caller ends on the refusal of new work, never on lost work.
    assert codes[-1] is grpc.StatusCode.UNAVAILABLE
    assert "cut off" not in serving.log.read_text()
    wait_for_no_processes(serving.data_dir)

from __future__ import annotations

import math
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from multigrain.events.records import JobError, JobState, LossRecord, StateRecord
from multigrain.jobs import ipc
from multigrain.jobs.ipc import (
    ChannelReporter,
    ChannelServer,
    Done,
    Emit,
    Hello,
    Message,
    Ready,
    Stop,
    decode,
    encode,
)

LOSS = LossRecord(1, 100, 1, 2, 0.5, 0.25, 0.75, 0.05)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ChannelServer]:
    server = ChannelServer(tmp_path)
    yield server
    server.close()


def receive(server: ChannelServer, count: int, seconds: float = 60) -> list[Message | None]:
    """The next ``count`` messages."""
    found: list[Message | None] = []
    deadline = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < deadline:
        found += [received.message for received in server.wait(0.05)]
    return found


def connect(server: ChannelServer) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(server.address)
    return client


@pytest.mark.parametrize(
    "message",
    [
        ipc.GuardHello("t", -2, 7),
        Hello("t", 1, 2, 7),
        Ready(),
        Emit(LOSS),
        Emit(replace(LOSS, loss=math.inf, damping=-math.inf)),
        Emit(StateRecord(JobState.FAILED, "x", JobError("DATASET", "y"))),
        ipc.Alive(),
        ipc.Failed("DATASET", "no\nimages", "spec.dataset"),
        Done(True, "ü"),
        ipc.Exit(137, 9),
        ipc.Terminate(),
        Stop(),
    ],
)
def test_a_message_is_encoded_as_one_line_and_decoded(message: Message) -> None:
    line = encode(message)
    assert line.count(b"\n") == 1
    assert decode(line) == message


def test_a_token_is_not_in_what_is_logged() -> None:
    assert "secret" not in f"{Hello('secret', 0, 1, 7)} {ipc.GuardHello('secret', 0, 7)}"


@pytest.mark.parametrize("line", [b"", b"[]", b"7", b'{"x":{}}', b'{"Hello":{}}', b'{"Done":[]}'])
def test_an_invalid_line_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        decode(line)


def test_the_socket_is_in_a_private_folder_that_is_removed_with_it(tmp_path: Path) -> None:
    server = ChannelServer(tmp_path)
    folder = Path(server.address).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(server.address) < 100
    server.close()
    assert not folder.exists()


def test_the_folder_of_a_killed_runner_is_removed_by_the_next_one(tmp_path: Path) -> None:
    killed = ChannelServer(tmp_path)
    with closing(ChannelServer(tmp_path / "another job")), closing(ChannelServer(tmp_path)):
        assert not Path(killed.address).parent.exists()
    killed.close()


def test_messages_arrive_whole_in_pieces_of_any_size(server: ChannelServer) -> None:
    hello = Hello(server.token, 0, 1, 7)
    with connect(server) as client:
        for byte in encode(hello) + encode(Ready()):
            client.sendall(bytes([byte]))
            received = server.wait(0.01)
            assert all(isinstance(each.message, Hello | Ready) for each in received)
        client.sendall(encode(Emit(LOSS)) * 3)
        assert receive(server, 3) == [Emit(LOSS)] * 3
    assert receive(server, 1) == [None]


@pytest.mark.parametrize(
    "first",
    [b"\n", b"\x00\xff\n", encode(Ready()), encode(Hello("wrong", 0, 1, 7)), b'{"Hello":1}\n'],
)
def test_a_connection_without_a_valid_hello_is_dropped(server: ChannelServer, first: bytes) -> None:
    with connect(server) as client:
        client.sendall(first)
        assert receive(server, 1, seconds=0.3) == []
        client.settimeout(60)
        assert client.recv(1) == b""


def run_reporter(body: str, server: ChannelServer) -> subprocess.Popen[bytes]:
    """A process with a ChannelReporter named ``reporter``."""
    code = (
        "import os, time\n"
        "from multigrain.events.records import LossRecord\n"
        "from multigrain.jobs.ipc import Done, Hello\n"
        "from multigrain.jobs.ipc import ChannelReporter\n"
        f"hello = Hello({server.token!r}, 0, 1, os.getpid())\n"
        f"reporter = ChannelReporter({server.address!r}, hello)\n"
    )
    return subprocess.Popen([sys.executable, "-c", code + body])


def test_every_message_has_been_sent_when_finish_returns(server: ChannelServer) -> None:
    body = (
        "reporter.ready()\n"
        "for step in range(500):\n"
        "    reporter.emit(LossRecord(step, 1, 1, 1, .5, .5, .5, .5))\n"
        "reporter.finish(Done(False, 'all'))\n"
        "os._exit(0)\n"
    )
    process = run_reporter(body, server)
    received = receive(server, 504, seconds=20)
    assert process.wait(60) == 0
    assert isinstance(received[0], Hello)
    assert received[1] == Ready()
    steps = [message.record.step for message in received if isinstance(message, Emit)]  # type: ignore[union-attr]
    assert steps == list(range(500))
    assert received[-2:] == [Done(False, "all"), None]


def test_a_worker_exits_when_its_runner_does(tmp_path: Path) -> None:
    with closing(ChannelServer(tmp_path)) as lost:
        process = run_reporter("time.sleep(60)\n", lost)
        receive(lost, 1)
    assert process.wait(60) == 75


@pytest.fixture
def reporter(server: ChannelServer) -> ChannelReporter:
    """A reporter in this process, which must not end with it."""
    hello = Hello(server.token, 0, 1, os.getpid())
    return ChannelReporter(server.address, hello, on_lost=lambda code: None)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_worker_receives_a_stop_request(server: ChannelServer, reporter: ChannelReporter) -> None:
    assert not reporter.stop_requested
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not reporter.stop_requested:
        for received in server.wait(0.05):
            received.peer.send(Stop())
    wait_until(lambda: reporter.stop_requested)


def test_emit_takes_microseconds_in_any_thread(
    server: ChannelServer, reporter: ChannelReporter
) -> None:
    spent: list[float] = []

    def emit() -> None:
        begin = time.thread_time()
        for _ in range(200):
            reporter.emit(LOSS)
        spent.append((time.thread_time() - begin) / 200)

    threads = [threading.Thread(target=emit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert min(spent) < 50e-6
    assert receive(server, 801, seconds=20)[1:] == [Emit(LOSS)] * 800


def test_alive_is_sent_a_few_times_a_second_at_most(
    server: ChannelServer, reporter: ChannelReporter
) -> None:
    for _ in range(1000):
        reporter.alive()
    assert receive(server, 10, seconds=0.5)[1:] in ([ipc.Alive()], [ipc.Alive()] * 2)

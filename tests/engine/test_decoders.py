"""Images that harm the process that decodes them, and their neighbors."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from multigrain.engine.protocol import EmbeddingOptions
from multigrain.errors import ErrorKind
from multigrain_server.engines.memory import engine_memory
from tests.engine.bundles import SIZE, write_bundle
from tests.engine.client import EngineClient
from tests.engine.held import Fault
from tests.engine.pictures import picture

pytestmark = pytest.mark.process

VECTOR = EmbeddingOptions()
OTHERS = 12
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def quick(bundle: Path) -> Iterator[EngineClient]:
    """Decoding may take 0.3 s."""
    with EngineClient(bundle, decode_seconds=0.3, decode_threads=2) as client:
        yield client


@pytest.fixture
def engine(quick: EngineClient) -> Iterator[EngineClient]:
    """The same, which no test may end."""
    yield quick
    assert quick.process.poll() is None


@pytest.fixture
def patient(bundle: Path) -> Iterator[EngineClient]:
    """Decoding may take an hour."""
    with EngineClient(bundle, decode_seconds=3600, decode_threads=2) as client:
        yield client
        assert client.process.poll() is None


def send(client: EngineClient, data: bytes, /, **fields: object) -> int:
    """Sends an image; its number."""
    number = next(_numbers)
    client.submit(number, data, vector=VECTOR, **fields)
    return number


def template_of(client: EngineClient) -> psutil.Process:
    (template,) = psutil.Process(client.process.pid).children()
    return template


def decoders_of(client: EngineClient) -> list[psutil.Process]:
    return template_of(client).children()


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def send_others(client: EngineClient) -> list[int]:
    return [send(client, picture(seed), caller=2, client=2) for seed in range(OTHERS)]


def assert_answered(client: EngineClient, numbers: list[int]) -> None:
    assert [client.result(number).error for number in numbers] == [None] * len(numbers)


@pytest.mark.parametrize(
    ("data", "harm", "why"),
    [
        (Fault.SPIN, "budget", "takes more than 0.3 s of CPU time"),
        (Fault.SLEEP, "budget", "waits for something for more than 0.3 s"),
        (Fault.CRASH, "crash", "crashed its process (SIGSEGV (signal 11))"),
    ],
)
def test_an_image_that_harms_its_decoder_costs_no_other_image(
    engine: EngineClient, data: bytes, harm: str, why: str
) -> None:
    number = send(engine, data, client=1)
    assert_answered(engine, send_others(engine))
    result = engine.result(number)
    assert result.error is ErrorKind.IMAGE_HARMFUL
    assert result.harm == harm
    assert why in result.message
    assert "save the picture again" in result.message
    assert_answered(engine, [send(engine, picture(2))])


def test_an_image_that_needs_too_much_memory_is_refused_alone(engine: EngineClient) -> None:
    number = send(engine, Fault.ALLOCATE)
    assert_answered(engine, send_others(engine))
    result = engine.result(number)
    assert result.error is ErrorKind.IMAGE_UNREADABLE
    assert result.message == "the image could not be decoded (MemoryError)"
    assert result.harm == ""


def test_images_of_killed_decoder_processes_are_decoded_by_others(engine: EngineClient) -> None:
    for process in decoders_of(engine):
        process.send_signal(signal.SIGKILL)
    assert_answered(engine, send_others(engine))


@pytest.mark.parametrize("seconds", [0.5, 5.0], ids=["large", "slow"])
def test_expensive_images_never_occupy_decoders_of_ordinary_ones(
    patient: EngineClient, seconds: float
) -> None:
    for _ in range(8):
        send(patient, Fault.SPIN, client=1, decode_seconds=seconds)
    expected = 2 + (2 if seconds < 1 else 1)
    until(lambda: len(decoders_of(patient)) == expected)
    assert_answered(patient, send_others(patient))


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="Linux only")
@pytest.mark.parametrize(
    ("seconds", "policy", "nice"), [(0.5, "SCHED_OTHER", 10), (5.0, "SCHED_IDLE", 0)]
)
def test_expensive_images_are_decoded_at_a_low_priority(
    patient: EngineClient, seconds: float, policy: str, nice: int
) -> None:
    usual = os.getpriority(os.PRIO_PROCESS, patient.process.pid)
    before = {process.pid for process in decoders_of(patient)}
    assert {os.sched_getscheduler(pid) for pid in before} == {os.SCHED_OTHER}
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in before} == {usual}
    send(patient, Fault.SPIN, decode_seconds=seconds)
    until(lambda: len(decoders_of(patient)) == 3)
    (more,) = {process.pid for process in decoders_of(patient)} - before
    until(lambda: os.sched_getscheduler(more) == getattr(os, policy))
    until(lambda: os.getpriority(os.PRIO_PROCESS, more) == min(19, usual + nice))


def test_images_of_a_penalized_client_wait_for_the_slow_lane(patient: EngineClient) -> None:
    first = send(patient, Fault.SPIN, client=1, decode_seconds=5.0)
    until(lambda: len(decoders_of(patient)) == 3)
    second = send(patient, picture(2), client=1, penalized=True)
    assert_answered(patient, send_others(patient))
    assert second not in patient._results
    patient.cancel(first)
    assert patient.result(second).error is None
    assert patient.result(first).error is ErrorKind.CANCELLED


@pytest.mark.parametrize("deadline", [False, True])
def test_decoding_ends_when_nobody_waits_for_it(patient: EngineClient, deadline: bool) -> None:
    deadline_ns = time.monotonic_ns() + 2_000_000_000 if deadline else 0
    number = send(patient, Fault.SPIN, deadline_ns=deadline_ns)
    if not deadline:
        until(lambda: max(sum(one.cpu_times()[:2]) for one in decoders_of(patient)) > 0.8)
        patient.cancel(number)
    assert patient.result(number).error is (ErrorKind.DEADLINE if deadline else ErrorKind.CANCELLED)
    assert patient.result(number).harm == "abandoned"
    assert_answered(patient, send_others(patient))


def test_a_large_photo_that_misses_its_deadline_does_no_harm(patient: EngineClient) -> None:
    """It took no more than was estimated: the machine was busy, or the deadline short."""
    deadline_ns = time.monotonic_ns() + 2_000_000_000
    number = send(patient, Fault.SPIN, decode_seconds=2.4, deadline_ns=deadline_ns)
    assert patient.result(number).error is ErrorKind.DEADLINE
    assert patient.result(number).harm == ""


def test_only_decoder_processes_decode(patient: EngineClient) -> None:
    """While they are stopped, the engine computes what needs no decoding."""
    for process in decoders_of(patient):
        process.suspend()
    image = send(patient, picture(1))
    preprocessed = send(patient, np.zeros((3, SIZE, SIZE), "<f4").tobytes(), tensor=True)
    assert_answered(patient, [preprocessed])
    assert image not in patient._results
    for process in decoders_of(patient):
        process.resume()
    assert_answered(patient, [image])


def test_decoder_processes_have_one_thread(engine: EngineClient) -> None:
    assert_answered(engine, send_others(engine))
    assert {process.num_threads() for process in decoders_of(engine)} == {1}


@pytest.mark.parametrize("how", ["socket", "kill"])
def test_decoder_processes_end_with_the_engine(bundle: Path, how: str) -> None:
    with EngineClient(bundle) as client:
        processes = [template_of(client), *decoders_of(client)]
        assert len(processes) == 3
        if how == "kill":
            client.process.kill()
        else:
            client.socket.close()
        client.process.wait(60)
        until(lambda: not any(_alive(process) for process in processes))


def test_an_engine_without_its_template_ends(bundle: Path) -> None:
    """The daemon replaces it."""
    with EngineClient(bundle) as client:
        template_of(client).kill()
        assert client.process.wait(60) == 1


def test_decoder_processes_hold_no_descriptor_of_the_engine(engine: EngineClient) -> None:
    """Its socket would stay open when it ends."""
    processes = [process for process in decoders_of(engine) if _alive(process)]
    assert processes
    for process in processes:
        kinds = [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in (0, 1, 2)]
        others = {os.readlink(path) for path in Path(f"/proc/{process.pid}/fd").iterdir()}
        sockets = {name for name in others - set(kinds) if name.startswith("socket:")}
        assert len(sockets) == 1


def test_the_memory_of_decoder_processes_is_counted_once(engine: EngineClient) -> None:
    processes = [template_of(engine), *decoders_of(engine)]
    alone = psutil.Process(engine.process.pid).memory_info().rss
    separate = sum(process.memory_info().rss for process in processes)
    with_decoders = engine_memory(engine.process.pid)
    assert alone < with_decoders < alone + separate
    assert engine_memory(2**22 + 1) == 0


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

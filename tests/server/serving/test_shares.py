"""No client, connection or caller keeps the others out of the queue."""

from __future__ import annotations

import random
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache

import pytest
from prometheus_client import CollectorRegistry

from multigrain.engine.batching import Item
from multigrain.engine.lanes import ORDINARY_SECONDS, Lane
from multigrain.engine.protocol import Submit
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.cost import DecodeCost, decode_cost
from multigrain_server.engines.config import ServingConfig
from multigrain_server.engines.images import ImageRequest, new_caller
from multigrain_server.models.metrics import ServingMetrics
from multigrain_server.serving.admission import Admission
from multigrain_server.serving.flow import Flow, Work
from multigrain_server.serving.shares import Load, Sender, Shares
from tests.server.serving.test_admission import Clock, Engine

RATE = 50.0
CHEAP = DecodeCost(pixels=250_000, seconds=0.005, bytes=1_000_000)
SLOW = DecodeCost(pixels=50_000_000, seconds=2.3, bytes=600_000_000)


@cache
def _image(size: int) -> bytes:
    return bytes(size)


@dataclass
class Traffic:
    """A caller that sends requests one after the other, or more of them at a time."""

    client: str
    connection: str
    images: int = 1
    at_once: int = 1
    seconds: float = 0.0
    size: int = 10
    cost: DecodeCost = CHEAP
    stream: bool = False
    answered: int = 0
    refused: list[MultigrainError] = field(default_factory=list)
    caller: int = field(default_factory=new_caller)


class Simulation:
    """Admission in front of a fake engine that computes one image at a time, in turns: of the
    clients, and of the callers of a client."""

    def __init__(self, chance: Callable[[], float] | None = None, **fields: object) -> None:
        config = ServingConfig(**{"queue_decode_seconds": 120.0, "decode_threads": 2, **fields})
        self.clock = Clock()
        self.registry = CollectorRegistry()
        metrics = ServingMetrics(self.registry)
        self.admission = Admission(config, metrics, self.clock, chance or random.Random(1).random)
        self.engine = Engine(RATE)
        self._queues: dict[str, dict[int, deque[tuple[Traffic, list[int], ExitStack]]]] = {}
        self._in_flight: Counter[int] = Counter()
        #: Images by client.
        self.computed: Counter[str] = Counter()

    def run(self, *traffic: Traffic, images: int) -> None:
        """Until the engine has computed so many images; everybody sends again at once."""
        for _ in range(images):
            for one in traffic:
                self.send(one)
            self._compute()
            self.clock.ns += int(1e9 / RATE)

    def send(self, one: Traffic) -> None:
        while self._in_flight[id(one)] < one.at_once:
            caller = one.caller if one.stream else new_caller()
            deadline = self.clock.ns + int(1e9 * one.seconds) if one.seconds else 0
            request = ImageRequest(
                "",
                [_image(one.size)] * one.images,
                client=one.client,
                connection=one.connection,
                costs=[one.cost] * one.images,
                caller=caller,
                deadline_ns=deadline,
            )
            inside = ExitStack()
            try:
                inside.enter_context(self.admission.admit(request, self.engine))
            except MultigrainError as error:
                one.refused.append(error)
                return
            self._in_flight[id(one)] += 1
            callers = self._queues.setdefault(one.client, {})
            callers.setdefault(caller, deque()).append((one, [one.images], inside))

    def _compute(self) -> None:
        if not self._queues:
            return
        client = next(iter(self._queues))
        callers = self._queues.pop(client)
        caller = next(iter(callers))
        requests = callers.pop(caller)
        one, left, inside = requests[0]
        self.computed[client] += 1
        left[0] -= 1
        if not left[0]:
            requests.popleft()
            inside.close()
            one.answered += 1
            self._in_flight[id(one)] -= 1
        if requests:
            callers[caller] = requests
        if callers:
            self._queues[client] = callers

    def held(self, client: str) -> int:
        return sum(
            left[0] for requests in self._queues.get(client, {}).values() for _, left, _ in requests
        )


def hogs(**fields: object) -> dict[str, Callable[[], list[Traffic]]]:
    """Ways in which one client may try to fill the queue."""

    def traffic(count: int, connections: int = 1, **values: object) -> list[Traffic]:
        return [
            Traffic("hog", f"ipv4:10.0.0.1:{number % connections}", **{**values, **fields})
            for number in range(count)
        ]

    return {
        "large calls": lambda: traffic(12, images=64),
        "large calls with a deadline": lambda: traffic(12, images=64, seconds=20),
        "small calls": lambda: traffic(1, at_once=2000),
        "many connections": lambda: traffic(30, 30, at_once=30),
        "streams": lambda: traffic(8, at_once=128, stream=True),
        "many bytes": lambda: traffic(12, 4, images=8, size=1 << 20),
        "slow images": lambda: traffic(12, 3, images=16, cost=SLOW),
        "one slow image a call": lambda: traffic(12, 3, at_once=64, cost=SLOW),
    }


@pytest.mark.parametrize("kind", hogs())
@pytest.mark.parametrize("images", [1, 32])
def test_a_client_that_wants_everything_keeps_no_other_client_out(kind: str, images: int) -> None:
    simulation = Simulation(queue_bytes=64 << 20)
    hog = hogs()[kind]()
    simulation.run(*hog, images=20)
    assert any(one.refused for one in hog), "the queue is filled before anybody else comes"
    victim = Traffic("ada", "ipv4:10.0.0.2:1", images=images, seconds=30)
    simulation.run(*hog, victim, images=300)
    assert victim.refused == []
    assert victim.answered >= 4
    assert simulation.computed["hog"] >= 100
    messages = [error.message for one in hog for error in one.refused]
    assert any(message.startswith("hog is above its share (it has ") for message in messages)
    assert not any(message.startswith("the server is full (") for message in messages[-50:])


@pytest.mark.parametrize("kind", ["large calls", "streams", "many bytes", "slow images"])
@pytest.mark.parametrize("connection", ["ipv4:10.0.0.1:0", "ipv4:10.0.0.1:9999"])
def test_without_tokens_a_large_caller_keeps_no_small_one_of_its_host_out(
    kind: str, connection: str
) -> None:
    simulation = Simulation(queue_bytes=64 << 20)
    hog = hogs()[kind]()
    simulation.run(*hog, images=20)
    victim = Traffic("hog", connection)
    simulation.run(*hog, victim, images=300)
    assert victim.refused == []
    assert victim.answered >= 10
    assert any(one.refused for one in hog)


def test_small_calls_on_one_connection_keep_no_other_connection_of_the_host_out() -> None:
    simulation = Simulation(queue_items=512)
    hog = hogs()["small calls"]()
    simulation.run(*hog, images=100)
    victim = Traffic("hog", "ipv4:10.0.0.1:9999")
    simulation.run(*hog, victim, images=1000)
    assert victim.refused == []
    assert victim.answered >= 2


def test_a_client_alone_uses_nearly_the_whole_queue() -> None:
    for kind, least in (("large calls", 384), ("small calls", 432), ("many connections", 448)):
        simulation = Simulation()
        simulation.run(*hogs()[kind](), images=1)
        assert simulation.admission.items >= least - 1, kind


def test_a_request_that_fills_the_queue_is_admitted_when_nothing_else_is_in_it() -> None:
    simulation = Simulation(queue_items=64)
    one = Traffic("ada", "", images=64)
    simulation.run(one, images=640)
    assert one.refused == []
    assert one.answered == 10


def test_clients_that_want_everything_get_equal_parts() -> None:
    simulation = Simulation()
    first = [Traffic("a", f"a{number}", at_once=300) for number in range(4)]
    others = [Traffic(name, name, at_once=1000) for name in ("b", "c")]
    simulation.run(*first, images=100)
    assert simulation.held("a") > 400
    simulation.run(*first, *others, images=1000)
    held = [simulation.held(name) for name in "abc"]
    assert min(held) >= 120
    assert max(held) <= 1.6 * min(held)


def test_the_decoding_of_images_in_flight_is_bounded() -> None:
    """512 tiny files that take 20 minutes: most are refused at once."""
    simulation = Simulation()
    one = Traffic("ada", "", at_once=512, cost=SLOW)
    simulation.send(one)
    assert 20 < simulation.admission.items <= 120 / SLOW.seconds
    (error,) = one.refused
    assert error.kind is ErrorKind.OVERLOADED
    assert "seconds of decoding are in flight, the limit is 120" in error.message
    assert error.retry_after
    in_flight = simulation.registry.get_sample_value("multigrain_inflight_decode_seconds")
    assert in_flight == pytest.approx(SLOW.seconds * simulation.admission.items)


@pytest.mark.parametrize(
    ("cost", "field"),
    [
        (DecodeCost(1, 5.0, 1), "queue_decode_seconds"),
        (DecodeCost(1, 0.1, 2 << 30), "queue_decode_bytes"),
    ],
)
def test_a_request_that_no_queue_could_take_says_so(cost: DecodeCost, field: str) -> None:
    simulation = Simulation()
    one = Traffic("ada", "", images=64, cost=cost)
    simulation.send(one)
    (error,) = one.refused
    assert error.kind is ErrorKind.INVALID_FIELD
    assert f"serving.{field}" in error.message
    assert "send fewer" in error.message


def test_promises_to_one_client_refuse_no_other_client() -> None:
    """An earlier deadline counts against callers of the same connection alone."""
    simulation = Simulation()
    hog = [Traffic("hog", "h", at_once=1000, seconds=5)]
    simulation.run(*hog, images=20)
    assert simulation.held("hog") > 150, "what is computed in three quarters of 5 s"
    victim = Traffic("ada", "a", seconds=5.001)
    simulation.run(*hog, victim, images=300)
    assert victim.refused == []


def test_slow_images_neither_delay_nor_slow_down_others_in_the_estimate() -> None:
    simulation = Simulation()
    slow = Traffic("hog", "h", images=40, cost=SLOW, stream=True)
    simulation.send(slow)
    ordinary = Traffic("hog", "h", seconds=0.5)
    simulation.send(ordinary)
    assert ordinary.refused == []
    # Their own wait counts them: 94 s of decoding, two seconds of the estimate in a second.
    late = Traffic("hog", "h", seconds=30, cost=SLOW, stream=True, caller=slow.caller)
    simulation.send(late)
    assert "it would answer in 47.15 s" in late.refused[0].message
    assert simulation.held("hog") == 41


def test_an_image_costs_as_many_turns_as_its_decoding_takes() -> None:
    simulation = Simulation(chance=lambda: 0.0)
    # 80 ms of decoding on one of two decoders is 2 images of computing at 50 per second.
    heavy = DecodeCost(1, 0.08, 1)
    simulation.send(Traffic("ada", "a", images=60, cost=heavy))
    late = Traffic("ada", "a", images=10, seconds=1, cost=heavy)
    simulation.send(late)
    assert "it would answer in 0.80 s" in late.refused[0].message
    ordinary = Traffic("ada", "a", images=10, seconds=1)
    simulation.send(ordinary)
    assert ordinary.refused == []


def test_refusals_of_one_client_delay_the_retries_of_no_other() -> None:
    simulation = Simulation(queue_items=8, max_images_per_request=8)
    simulation.send(Traffic("x", "x", images=8))
    hog = Traffic("hog", "h")
    for _ in range(300):
        simulation.send(hog)
    assert hog.refused[-1].retry_after == pytest.approx(5.08, abs=0.1)
    victim = Traffic("ada", "a")
    simulation.send(victim)
    assert victim.refused[0].retry_after == pytest.approx(0.08, abs=0.05)


@contextmanager
def holding(shares: Shares, sender: Sender, load: Load) -> Iterator[None]:
    shares.add(sender, load)
    yield
    shares.remove(sender, load)


def test_nothing_is_left_of_what_was_held() -> None:
    shares = Shares(Load(512, 1 << 20, 120.0, 1 << 30))
    load = Load(1, 1000, 0.1, 1)
    with ExitStack() as stack:
        for number in range(300):
            sender = Sender(f"client {number % 7}", f"connection {number % 13}", number)
            stack.enter_context(holding(shares, sender, load))
        assert shares.held.items == 300
    assert shares.held == Load(0, 0, 0.0, 0)
    assert shares.shortage(Sender("a", "b", 1), Load(512, 1 << 20, 120.0, 1 << 30)) is None


LARGE_IMAGE = DecodeCost(pixels=12_000_000, seconds=0.3, bytes=50_000_000)


def test_work_is_counted_in_the_lane_that_decodes_it() -> None:
    flow = Flow(RATE, 16)
    request = ImageRequest("", [b"", b"", b""], costs=[CHEAP, LARGE_IMAGE, SLOW])
    assert flow.work(request) == Work(1, 1.0, (0.3, SLOW.seconds))
    penalized = flow.work(replace(request, penalized=True))
    assert penalized == Work(0, 0.0, (0.0, pytest.approx(ORDINARY_SECONDS + 0.3 + SLOW.seconds)))
    assert flow.work(ImageRequest("", [b"", b""], tensors=True)) == Work(2, 2.0)


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.11, 2.5, 2.51])
@pytest.mark.parametrize("size", [0, 64 << 20, (64 << 20) + 1, 320 << 20, (320 << 20) + 1])
def test_work_is_counted_in_the_lane_in_which_an_engine_does_it(seconds: float, size: int) -> None:
    cost = DecodeCost(1, seconds, size)
    work = Flow(RATE, 16).work(ImageRequest("", [b""], costs=[cost]))
    request = Submit(
        id=1, caller=1, resolution=1, deadline_ns=0, decode_seconds=seconds, decode_bytes=size
    )
    expected = Lane.SLOW
    if seconds <= 0.1 and size <= 64 << 20:
        expected = Lane.ORDINARY
    elif seconds <= 2.5 and size <= 320 << 20:
        expected = Lane.LARGE
    assert Item(request, b"").lane is expected
    counted = [work.images > 0, work.lanes[0] > 0, work.lanes[1] > 0]
    assert counted == [expected is each for each in (Lane.ORDINARY, Lane.LARGE, Lane.SLOW)]


def test_a_photo_of_24_megapixels_is_no_slow_image() -> None:
    """Slow images get no CPU time while an engine is busy."""
    size = struct.pack("<HH", 5712, 4284)
    frame = b"\x10\0\0\x9d\x01\x2a" + size + bytes(3 << 20)
    webp = struct.pack("<4sI4s4sI", b"RIFF", len(frame) + 12, b"WEBP", b"VP8 ", len(frame)) + frame
    cost = decode_cost(webp)
    assert cost.pixels == 5712 * 4284
    work = Flow(RATE, 16).work(ImageRequest("", [webp], costs=[cost]))
    assert work.lanes == (cost.seconds, 0.0)


def test_large_images_are_planned_for_all_decoders_before_any_is_measured() -> None:
    """Or the second of two requests with photos would be refused on a machine with many CPUs."""
    photos = Work(0, 0.0, (64 * 0.2, 0.0))
    alone, many = (Flow(RATE, 16, Clock(), count).seconds_at_most(photos) for count in (1, 16))
    assert many == pytest.approx(alone / 16)
    slow = Work(0, 0.0, (0.0, 3.0))
    assert Flow(RATE, 16, Clock(), 16).seconds_at_most(slow) == pytest.approx(1.5)


def test_the_rate_of_a_lane_is_measured_on_its_own() -> None:
    clock = Clock()
    flow = Flow(RATE, 4, clock)
    sender, large, slow = Sender("a", "", 1), Work(0, 0.0, (3.0, 0.0)), Work(0, 0.0, (0.0, 3.0))
    for _ in range(12):
        flow.enter(sender, large, 0)
        flow.enter(sender, slow, 0)
    for number in range(12):
        clock.ns += 500_000_000  # large ones are six times as fast as estimated
        flow.leave(sender, large, answered=True)
        if number % 6 == 5:  # and the slow lane gets hardly any time
            flow.leave(sender, slow, answered=True)
    for _ in range(10):
        flow.leave(sender, slow, answered=False)
    assert flow.rate == RATE
    assert flow.seconds_before(sender, large, 0) == pytest.approx(0.5, rel=0.2)
    assert flow.seconds_before(sender, slow, 0) > 2
    assert flow.idle

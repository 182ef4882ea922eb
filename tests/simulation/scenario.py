"""Runs a scenario in virtual time, and compares what happened with the bars."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import cast

from prometheus_client import CollectorRegistry

from multigrain.bundle.manifest import BundleManifest
from multigrain_server.devices import EngineDevices
from multigrain_server.engines.config import ServingConfig
from multigrain_server.engines.images import ImageRequest
from multigrain_server.models.catalog import ModelCatalog
from multigrain_server.models.loaded_model import LoadedModel
from multigrain_server.models.metrics import ServingMetrics
from multigrain_server.models.registry import BundleEntry, ModelVersion
from multigrain_server.serving.admission import Admission, Engine
from multigrain_server.serving.penalties import Penalties
from multigrain_server.serving.service import ImageService
from tests.simulation.callers import Call, Caller, Group, current_call
from tests.simulation.clock import VirtualClock, run
from tests.simulation.engine import RESOLUTION, EngineHost, Pace

SETTLING_SECONDS = 5.0
"""So long after a change nothing is promised."""

GOODPUT = 0.9
MISSED = 0.01
SLOWEST_TENTH = 0.5
# With fewer answers a caller, chance decides who is slowest.
_FAIR_ANSWERS = 20


@dataclass(frozen=True)
class Change:
    """At a moment, an engine works at ``factor`` times its pace, or ends ("restart").

    Attributes:
        at: seconds of the simulation.
        factor: of the pace; None = it is killed and replaced, at the same pace.
        model: whose engine it is.
    """

    at: float
    factor: float | None
    model: str = "a"


@dataclass(frozen=True)
class Scenario:
    """What is simulated.

    Attributes:
        name: for messages.
        groups: the callers.
        paces: of the models.
        changes: in order.
        seconds: until the simulation ends.
        config: of the daemon, as keywords.
        seed: of everything random.
    """

    name: str
    groups: Sequence[Group]
    paces: Mapping[str, Pace] = field(default_factory=lambda: {"a": Pace(50.0)})
    changes: Sequence[Change] = ()
    seconds: float = 30.0
    config: Mapping[str, object] = field(default_factory=dict)
    seed: int = 1

    def run(self) -> Result:
        """Simulates it; the same scenario always has the same result."""
        clock = VirtualClock()
        return run(clock, _Simulation(self, clock).run())


@dataclass(frozen=True)
class Calm:
    """A span of time without changes, and the speed of an engine in it.

    Attributes:
        begin, end: in seconds of the simulation.
        pace: images per second.
        answered: images that were answered in time.
    """

    model: str
    begin: float
    end: float
    pace: float
    answered: int

    @property
    def goodput(self) -> float:
        """Part of the pace."""
        return self.answered / (self.pace * (self.end - self.begin))


@dataclass(frozen=True)
class Result:
    """What happened.

    Attributes:
        scenario: that was simulated.
        calls: all attempts.
        calm: spans of time that begin 5 s after a change and end with the next one.
    """

    scenario: Scenario
    calls: Sequence[Call]
    calm: Sequence[Calm]

    def rate(self, model: str = "a") -> float:
        """Images per second that were answered in time."""
        spans = [span for span in self.calm if span.model == model]
        seconds = sum(span.end - span.begin for span in spans)
        return sum(span.answered for span in spans) / seconds

    def accepted(self) -> list[Call]:
        """Calls of obedient callers that were accepted, and are due while nothing changes."""
        spans = defaultdict(list)
        for span in self.calm:
            spans[span.model].append(span)
        return [
            call
            for call in self.calls
            if call.accepted
            and call.group.behavior in ("obedient", "client")
            and any(
                span.begin <= call.accepted and call.deadline <= span.end
                for span in spans[call.group.model]
            )
        ]

    def missed(self) -> float:
        """Part of the accepted calls that were not answered by their deadline."""
        accepted = self.accepted()
        return sum(call.outcome != "answered" for call in accepted) / max(1, len(accepted))

    def slowest_tenths(self) -> dict[str, tuple[float, float]]:
        """Of each group: answers of a caller on average, and the slowest tenth over that."""
        counts: dict[str, Counter[int]] = defaultdict(Counter)
        for call in self.calls:
            counts[call.group.name][call.caller] += call.outcome == "answered"
        out = {}
        for name, by_caller in counts.items():
            answers = sorted(by_caller.values())
            mean = sum(answers) / len(answers)
            tenth = answers[: math.ceil(len(answers) / 10)]
            out[name] = mean, sum(tenth) / len(tenth) / mean if mean else 0.0
        return out

    def failures(self, *, goodput: float = GOODPUT) -> list[str]:
        """The bars that are missed, with numbers."""
        found = [
            f"goodput {span.goodput:.2f} of {span.pace:g} images/s at model {span.model} "
            f"from {span.begin:g} to {span.end:g} s (bar {goodput})"
            for span in self.calm
            if span.goodput < goodput
        ]
        if self.missed() > MISSED:
            accepted = self.accepted()
            outcomes = Counter(call.outcome for call in accepted)
            found.append(
                f"{100 * self.missed():.1f} % of {len(accepted)} accepted calls missed their "
                f"deadline (bar {100 * MISSED:g} %): {dict(outcomes)}"
            )
        behaviors = {group.name: group.behavior for group in self.scenario.groups}
        found += [
            f"the slowest tenth of {name} got {tenth:.2f} of the mean, {mean:.0f} answers (bar "
            f"{SLOWEST_TENTH})"
            for name, (mean, tenth) in self.slowest_tenths().items()
            if tenth < SLOWEST_TENTH
            and mean >= _FAIR_ANSWERS
            and behaviors[name] in ("obedient", "client")
        ]
        return [f"{self.scenario.name}: {what}" for what in found]

    def summary(self) -> str:
        """A line of numbers."""
        goodputs = " ".join(f"{span.goodput:.2f}" for span in self.calm)
        fair = " ".join(f"{tenth:.2f}" for _, tenth in self.slowest_tenths().values())
        refused = sum(call.outcome == "refused" and not call.accepted for call in self.calls)
        answered = sum(call.outcome == "answered" for call in self.calls)
        return (
            f"goodput {goodputs}; missed {100 * self.missed():.2f} % of {len(self.accepted())}; "
            f"slowest tenth {fair}; refusals an answer {refused / max(1, answered):.1f}"
        )


class _CountedAdmission(Admission):
    """Notes when a call is accepted."""

    clock: VirtualClock

    @contextmanager
    def admit(self, request: ImageRequest, engine: Engine) -> Iterator[Callable[[], None]]:
        with super().admit(request, engine) as image_answered:
            current_call.get().accepted = self.clock.elapsed
            yield image_answered


class _Catalog:
    """The models of a scenario."""

    def __init__(self) -> None:
        self.models: dict[str, LoadedModel] = {}
        self.loaded: Mapping[ModelVersion, LoadedModel] = MappingProxyType({})

    def route(self, name: str) -> LoadedModel:
        return self.models[name]


class _Simulation:
    """One run of a scenario."""

    def __init__(self, scenario: Scenario, clock: VirtualClock) -> None:
        self._scenario = scenario
        self._clock = clock
        self._calls: list[Call] = []
        self._hosts = {
            name: EngineHost(clock, random.Random(f"{scenario.seed} {name}"), pace)
            for name, pace in scenario.paces.items()
        }

    async def run(self) -> Result:
        scenario, clock = self._scenario, self._clock
        random.seed(scenario.seed)  # of the Python client's retries
        decoders = max(pace.decoders for pace in scenario.paces.values())
        config = ServingConfig(**{"decode_threads": decoders, **scenario.config})
        metrics = ServingMetrics(CollectorRegistry())
        catalog = _Catalog()
        service = ImageService(cast(ModelCatalog, catalog), config, metrics)
        service.admission = _CountedAdmission(config, metrics, clock.monotonic_ns)
        service.admission.clock = clock
        service.penalties = Penalties(metrics, clock.seconds)
        for name, host in self._hosts.items():
            devices = EngineDevices("cpu", None)
            model = LoadedModel(
                _entry(name), "auto", config, metrics, host.launch, devices, lambda: None
            )
            await model.load()
            catalog.models[name] = model
        began = clock.elapsed
        numbers = iter(range(1_000_000))
        callers = [
            Caller(
                number, group, service, clock, random.Random(scenario.seed + number), self._calls
            )
            for group in scenario.groups
            for number in (next(numbers) for _ in range(group.callers))
        ]
        tasks = [asyncio.create_task(caller.run()) for caller in callers]
        for change in scenario.changes:
            await asyncio.sleep(change.at - clock.elapsed)
            host = self._hosts[change.model]
            if change.factor is not None:
                host.factor = change.factor
            elif host.newest is not None:
                host.newest.kill()
        await asyncio.sleep(scenario.seconds - clock.elapsed)
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return Result(scenario, self._calls, list(self._calm(began)))

    def _calm(self, began: float) -> Iterator[Calm]:
        scenario = self._scenario
        for model, pace in scenario.paces.items():
            factor, start = 1.0, began
            ends: list[tuple[float, float | None]] = [
                (change.at, change.factor) for change in scenario.changes if change.model == model
            ]
            for at, new in [*ends, (scenario.seconds, None)]:
                begin = start + SETTLING_SECONDS
                answered = sum(
                    call.images
                    for call in self._calls
                    if call.group.model == model
                    and call.outcome == "answered"
                    and begin <= call.ended < at
                )
                if at > begin:
                    yield Calm(model, begin, at, factor * pace.rate, answered)
                factor, start = new or factor, at


def _entry(name: str) -> BundleEntry:
    """What the daemon needs to know of a bundle to serve it."""
    head = SimpleNamespace(resolution=RESOLUTION, whitening=None)
    manifest = SimpleNamespace(heads=(head,), embedding_size=4, labels=())
    return BundleEntry(ModelVersion(name, 1), Path(name), cast(BundleManifest, manifest))

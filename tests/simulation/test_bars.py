"""The bars of admission and batching, in virtual time; see the package's description."""

from __future__ import annotations

from unittest import mock

import pytest

from multigrain_server.serving import admission
from multigrain_server.serving.flow import Flow
from tests.simulation.callers import Group
from tests.simulation.paces import PACES
from tests.simulation.scenario import SLOWEST_TENTH, Change, Result, Scenario


def check(scenario: Scenario) -> Result:
    result = scenario.run()
    failures = result.failures()
    assert not failures, "\n".join([*failures, result.summary()])
    return result


@pytest.mark.parametrize(("pace", "seconds"), [(5, 90), (12, 27), (50, 12)])
def test_many_callers_get_as_much_as_few(pace: int, seconds: float) -> None:
    few, many = (
        Scenario(
            f"{callers} callers with 2 s at {pace} images/s",
            [Group("obedient", callers)],
            {"a": PACES[pace]},
            seconds=seconds,
        ).run()
        for callers in (16, 256)
    )
    assert many.rate() >= 0.9 * few.rate(), f"{few.summary()}\n{many.summary()}"
    assert not many.failures(), many.failures()


@pytest.mark.parametrize(
    ("pace", "callers", "timeout", "every"),
    [(5, 64, 10.0, 30), (12, 64, 5.0, 22), (50, 100, 2.0, 12)],
)
def test_a_pace_that_changes_at_once(pace: int, callers: int, timeout: float, every: float) -> None:
    factors = (0.3, 1.0, 3.0, 1.0)
    check(
        Scenario(
            f"{callers} callers with {timeout:g} s at {pace} images/s that change",
            [Group("obedient", callers, (timeout, timeout))],
            {"a": PACES[pace]},
            [Change((number + 1) * every, factor) for number, factor in enumerate(factors)],
            seconds=5 * every,
        )
    )


def test_an_engine_that_ends() -> None:
    check(
        Scenario(
            "an engine that ends",
            [Group("obedient", 64)],
            {"a": PACES[50]},
            [Change(11, None)],
            seconds=24,
        )
    )


def test_calls_of_one_to_64_images() -> None:
    check(
        Scenario(
            "calls of 1 to 64 images",
            [Group("obedient", 64, (8.0, 10.0), (1, 4, 16, 64))],
            {"a": PACES[50]},
            [Change(25, 0.3)],
            seconds=60,
        )
    )


def test_images_that_cost_more_to_decode() -> None:
    check(
        Scenario(
            "images of 200 to 1500 pixels a side",
            [Group("obedient", 64, sides=(200, 200, 600, 1500))],
            {"a": PACES[50]},
            seconds=16,
        )
    )


def test_deadlines_from_very_near_to_far() -> None:
    check(
        Scenario(
            "deadlines of 0.5 to 10 s",
            [Group("obedient", 100, (0.5, 10.0))],
            {"a": PACES[50]},
            seconds=25,
        )
    )


def test_two_models_of_which_one_changes() -> None:
    check(
        Scenario(
            "two models",
            [Group("of a", 64), Group("of b", 64, (5.0, 5.0), model="b")],
            {"a": PACES[50], "b": PACES[12]},
            [Change(12, 0.3, "b")],
            seconds=30,
        )
    )


@pytest.mark.parametrize(
    "others",
    [
        Group("canceling", 20, behavior="canceling", pause=0.2, token="canceling"),
        Group("greedy", 20, behavior="greedy", pause=0.2, token="greedy"),
        Group("large", 5, images=(64,), behavior="greedy", pause=0.2, token="large"),
    ],
    ids=lambda group: group.name,
)
def test_obedient_callers_beside_others(others: Group) -> None:
    obedient = Group("obedient", 64, clients=7)
    result = check(
        Scenario(f"beside {others.name} callers", [obedient, others], {"a": PACES[50]}, seconds=14)
    )
    # They are seven of at most eight clients.
    answered = sum(
        call.images
        for call in result.calls
        if call.group is obedient and call.outcome == "answered" and call.ended > 7
    )
    assert answered >= 0.9 * 6 / 7 * 50 * 7, f"{answered} answers; {result.summary()}"


def test_callers_that_retry_as_the_python_client() -> None:
    check(
        Scenario(
            "the Python client's retries",
            [Group("client", 100, behavior="client")],
            {"a": PACES[50]},
            seconds=25,
        )
    )


def test_two_thousand_callers() -> None:
    check(
        Scenario(
            "2000 callers with 4 s",
            [Group("obedient", 2000, (4.0, 4.0))],
            {"a": PACES[50]},
            seconds=14,
        )
    )


FAIR = Scenario("16 callers for 7 places", [Group("obedient", 16)], {"a": PACES[5]}, seconds=150)


def test_no_caller_starves() -> None:
    result = check(FAIR)
    mean, tenth = result.slowest_tenths()["obedient"]
    assert mean > 20
    assert tenth >= SLOWEST_TENTH


def test_without_chance_callers_starve() -> None:
    """Whoever was just answered takes the place that has become free."""
    with mock.patch.object(admission, "_SPARED_TIME", 0.0):
        failures = FAIR.run().failures()
    assert any("the slowest tenth" in failure for failure in failures), failures


def test_without_a_look_at_the_deadline_accepted_calls_miss_theirs() -> None:
    with mock.patch.object(Flow, "seconds_at_most", return_value=0.0):
        failures = Scenario("no look", [Group("obedient", 200)], seconds=12).run().failures()
    assert any("missed their deadline" in failure for failure in failures), failures


def test_the_same_seed_gives_the_same_calls() -> None:
    def calls(seed: int) -> list[tuple[float, str]]:
        scenario = Scenario("", [Group("obedient", 40)], {"a": PACES[12]}, seconds=10, seed=seed)
        return [(call.ended, call.outcome) for call in scenario.run().calls]

    assert calls(1) == calls(1)
    assert calls(1) != calls(2)

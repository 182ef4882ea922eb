"""Many scenarios, some drawn at random, as a table."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.simulation.callers import Behavior, Group
from tests.simulation.paces import PACES
from tests.simulation.scenario import Change, Scenario

# A deadline allows so many batches of the best size at the slowest pace.
_BATCHES = 3


def scenarios(seed: int, count: int) -> Iterator[Scenario]:
    """The rows of 16 and 256 callers at each pace, and ``count`` that are drawn.

    Args:
        seed: of what is drawn.
        count: how many.
    """
    for rate, pace in PACES.items():
        for callers in (16, 256):
            name = f"{callers} callers, 2 s, {rate} images/s"
            group = Group("obedient", callers)
            yield Scenario(name, [group], {"a": pace}, seconds=max(8.5, min(60, 3000 / rate)))
    rng = random.Random(seed)
    for number in range(count):
        yield _drawn(rng, number)


def _drawn(rng: random.Random, number: int) -> Scenario:
    rate = rng.choice([rate for rate in PACES if rate <= 200])
    pace = PACES[rate]
    factors = rng.choice([(), (0.3,), (3.0,), (0.3, 1.0), (None,), (3.0, 0.3)])
    slowest = min((factor for factor in factors if factor), default=1.0)
    least = max(0.2, _BATCHES * pace.best_batch / (rate * min(slowest, 1.0)))
    timeout = min(10.0, least * rng.choice((1.0, 1.5, 3.0)))
    # Enough to fill two batches while others are decoded and answered.
    callers = max(rng.choice((16, 64, 256, 600)), 4 * pace.best_batch)
    images = rng.choice([(1,), (1,), (1, 2, 4), (1, 4, 16)])
    behavior: Behavior = rng.choice(("obedient", "obedient", "client"))
    every = max(10.0, 150 / (rate * slowest) + 5)
    name = (
        f"{number}: {callers} {behavior} callers, {timeout:.1f} s, {rate} images/s, "
        f"changes {factors}, {images} images"
    )
    return Scenario(
        name,
        [Group("callers", callers, (timeout, timeout), images, behavior=behavior)],
        {"a": pace},
        [Change(every * (place + 1), factor) for place, factor in enumerate(factors)],
        seconds=every * (len(factors) + 1),
        seed=number,
    )

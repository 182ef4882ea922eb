"""Fairness between clients and between callers, by cost: no threads, no clock."""

from __future__ import annotations

from collections import Counter

from multigrain.engine.batching import Item
from multigrain.engine.fair_queue import CallerRounds, FairQueue, images_before
from multigrain.engine.protocol import Submit


class Line:
    """A queue of images with their rounds."""

    def __init__(self) -> None:
        self.rounds = CallerRounds()
        self.queue = FairQueue[Item](lambda item: item.units)
        self.number = 0

    def add(self, client: int, caller: int, count: int = 1, *, milliseconds: int = 10) -> None:
        for _ in range(count):
            self.number += 1
            request = Submit(
                id=self.number, client=client, caller=caller, decode_seconds=milliseconds / 1000
            )
            item = Item(request, b"")
            self.rounds.add(item, 0)
            self.queue.push(item)

    def take(self, count: int = 1) -> list[Item]:
        items = []
        for _ in range(count):
            item = self.queue.pop()
            assert item is not None
            self.rounds.start(item)
            items.append(item)
        return items


def test_a_client_with_many_callers_gets_no_more_than_one_with_one() -> None:
    line = Line()
    for caller in range(50):
        line.add(1, caller, 4)
    line.add(2, 1000, 20)
    served = Counter(item.client for item in line.take(40))
    assert served == {1: 20, 2: 20}


def test_expensive_images_take_their_share_of_time_not_of_places() -> None:
    line = Line()
    line.add(1, 1, 20, milliseconds=100)
    line.add(2, 2, 200, milliseconds=10)
    served = Counter(item.client for item in line.take(110))
    assert served == {1: 10, 2: 100}


def test_a_newcomer_waits_for_one_image_of_each_other_client_at_most() -> None:
    line = Line()
    line.add(1, 1, 500)
    line.add(2, 2, 500)
    line.take(100)
    line.add(3, 3)
    assert [item.client for item in line.take(3)].count(3) == 1


def test_a_newcomer_comes_before_a_client_that_was_just_served() -> None:
    line = Line()
    line.add(1, 1, 500)
    line.take(10)
    line.add(2, 2)
    assert [item.client for item in line.take(2)] == [2, 1]


def test_cheap_images_pass_an_expensive_one_that_has_not_begun() -> None:
    line = Line()
    line.add(1, 1, milliseconds=5000)
    line.add(2, 2, 10, milliseconds=10)
    assert [item.client for item in line.take(11)] == [2] * 10 + [1]


def test_an_expensive_image_is_not_starved_by_cheap_ones() -> None:
    line = Line()
    line.add(1, 1, milliseconds=100)
    taken: list[int] = []
    while 1 not in taken:
        line.add(2, 2, milliseconds=10)
        taken += [item.client for item in line.take()]
    assert len(taken) <= 12


def test_callers_of_a_client_are_served_in_rotation_by_cost() -> None:
    line = Line()
    line.add(1, 1, 5, milliseconds=40)
    line.add(1, 2, 20, milliseconds=10)
    served = Counter(item.caller for item in line.take(15))
    assert served == {1: 3, 2: 12}


def test_what_a_client_took_before_does_not_count_against_it() -> None:
    line = Line()
    line.add(1, 1, 100)
    line.take(100)
    line.add(2, 2, 5)
    line.add(1, 1, 5)
    assert sorted(item.client for item in line.take(4)) == [1, 1, 2, 2]


def test_a_removed_image_is_not_served_and_leaves_nothing_behind() -> None:
    line = Line()
    line.add(1, 1, 3)
    line.add(2, 2)
    removed = next(iter(line.queue))
    line.queue.remove(removed)
    assert len(line.queue) == 3
    for item in [removed, *line.take(3)]:
        line.rounds.remove(item)
    assert line.queue.pop() is None
    assert not line.queue._clients
    assert not line.rounds._clients


def test_another_clients_images_count_as_ahead_only_by_its_share() -> None:
    line = Line()
    line.add(1, 1, 60)
    busy = list(line.queue)
    line.add(2, 2, 3)
    newcomers = [item for item in line.queue if item.client == 2]
    assert [images_before(item, [*busy, *newcomers]) for item in newcomers] == [1, 3, 5]
    assert images_before(busy[59], busy) == 59

"""The order in which an engine serves images: fair between clients, then between their callers.

Both levels are self-clocked fair queueing (S. J. Golestani, "A Self-Clocked Fair Queueing Scheme
for Broadband Applications", INFOCOM 1994), with an image's cost in milliseconds as its length: a
client gets as much time as any other that has images waiting, however many images and callers it
has, and however expensive they are. Not thread-safe.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

Rank = tuple[int, int, int]
"""Orders images of one client by round, deadline and arrival; the smallest goes first."""


class Queued(Protocol):
    """What the queues need to know of an image.

    Attributes:
        client, caller: who sent it.
        resolution: that it is computed at.
        units: its cost, at least 1.
        rank: its place among the images of its client.
    """

    rank: Rank

    @property
    def client(self) -> int: ...

    @property
    def caller(self) -> int: ...

    @property
    def resolution(self) -> int: ...

    @property
    def units(self) -> int: ...


Image = TypeVar("Image", bound=Queued)


class _Rounds:
    """The rounds of one client: the last that was served, and those of its callers."""

    def __init__(self) -> None:
        self.served = 0
        # Of each caller with images in the engine: its last round, and how many it has.
        self.last: dict[int, int] = {}
        self.count: Counter[int] = Counter()


class CallerRounds:
    """Ranks the images of each client so that its callers are served in rotation.

    A caller's images take successive rounds, as many as they cost, and a new caller joins in the
    next one. A caller that sends hundreds of images at once does not delay the others, and is not
    starved by them. Within a round the earliest deadline goes first, then the earliest arrival.
    """

    def __init__(self) -> None:
        self._clients: dict[int, _Rounds] = {}
        self._arrivals = 0

    @property
    def clients(self) -> int:
        """How many clients have images in the engine."""
        return len(self._clients)

    def add(self, image: Queued, deadline_ns: int) -> None:
        """Sets the image's rank."""
        rounds = self._clients.setdefault(image.client, _Rounds())
        turn = max(rounds.served, rounds.last.get(image.caller, 0)) + image.units
        rounds.last[image.caller] = turn
        rounds.count[image.caller] += 1
        self._arrivals += 1
        image.rank = (turn, deadline_ns, self._arrivals)

    def start(self, image: Queued) -> None:
        """The image is computed: its round begins."""
        rounds = self._clients[image.client]
        rounds.served = max(rounds.served, image.rank[0])

    def remove(self, image: Queued) -> None:
        """The image is answered, or dropped."""
        rounds = self._clients[image.client]
        rounds.count[image.caller] -= 1
        if not rounds.count[image.caller]:
            del rounds.count[image.caller], rounds.last[image.caller]
        if not rounds.count:
            del self._clients[image.client]


class _Backlog(Generic[Image]):
    """The images of one client in one queue.

    Args:
        start: the service that the client had when the oldest of them could have been served.

    Attributes:
        served: whether an image of the client was served since it has some here. Of two clients who
            had as much, one that was not comes first: it has waited, the other was just served.
    """

    def __init__(self, start: int) -> None:
        self.start = start
        self.served = False
        # Heaps by rank, of each resolution.
        self.images: dict[int, list[tuple[Rank, Image]]] = {}

    def first(self, resolution: int | None) -> Image | None:
        if len(self.images) == 1:  # nearly always
            ((only, heap),) = self.images.items()
            return heap[0][1] if resolution in (None, only) else None
        heaps = self.images.values() if resolution is None else [self.images.get(resolution)]
        return min((heap[0] for heap in heaps if heap), default=(None, None))[1]


class FairQueue(Generic[Image]):
    """Images that wait for the same thing; clients are served in rotation, by cost.

    Args:
        cost: of serving an image here, at least 1.
    """

    def __init__(self, cost: Callable[[Image], int]) -> None:
        self._cost = cost
        self._clients: dict[int, _Backlog[Image]] = {}
        self._served = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Image]:
        for backlog in self._clients.values():
            for heap in backlog.images.values():
                for _, image in heap:
                    yield image

    def count(self, resolution: int, *, each: int) -> int:
        """How many images of one resolution are here, of each client at most ``each``."""
        return sum(
            min(each, len(backlog.images.get(resolution, ()))) for backlog in self._clients.values()
        )

    def push(self, image: Image) -> None:
        """Adds an image that has a rank."""
        backlog = self._clients.get(image.client)
        if backlog is None:
            backlog = self._clients[image.client] = _Backlog(self._served)
        heapq.heappush(backlog.images.setdefault(image.resolution, []), (image.rank, image))
        self._length += 1

    def first(self, resolution: int | None = None) -> Image | None:
        """The image that :meth:`pop` would return."""
        if len(self._clients) == 1:
            (only,) = self._clients.values()
            return only.first(resolution)
        best: tuple[tuple[int, bool, int, int], Image] | None = None
        for backlog in self._clients.values():
            image = backlog.first(resolution)
            if image is not None:
                key = (backlog.start + self._cost(image), backlog.served, *image.rank[1:])
                if best is None or key < best[0]:
                    best = key, image
        return best[1] if best is not None else None

    def pop(self, resolution: int | None = None) -> Image | None:
        """Removes and returns the next image, of one resolution or any; None if there is none."""
        image = self.first(resolution)
        if image is None:
            return None
        backlog = self._clients[image.client]
        backlog.start += self._cost(image)
        backlog.served = True
        self._served = max(self._served, backlog.start)
        heapq.heappop(backlog.images[image.resolution])
        self._removed(image)
        return image

    def remove(self, image: Image) -> None:
        """Removes an image that is not served."""
        heap = self._clients[image.client].images[image.resolution]
        heap.remove((image.rank, image))
        heapq.heapify(heap)
        self._removed(image)

    def _removed(self, image: Image) -> None:
        self._length -= 1
        images = self._clients[image.client].images
        if not images[image.resolution]:
            del images[image.resolution]
        if not images:
            del self._clients[image.client]


def images_before(image: Queued, others: Iterable[Queued]) -> int:
    """How many of ``others`` are served before an image, if all cost the same.

    All of the same client that are before it; of each other client at most one more, because
    clients are served in rotation.
    """
    own, foreign = 0, Counter[int]()
    for other in others:
        if other.client != image.client:
            foreign[other.client] += 1
        elif other.rank < image.rank:
            own += 1
    return own + sum(min(count, own + 1) for count in foreign.values())

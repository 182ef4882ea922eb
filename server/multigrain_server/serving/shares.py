"""Shares of the queue: no client, connection or caller holds it alone while others want some."""

from __future__ import annotations

from typing import NamedTuple

# The last places of the queue are kept, so that nobody can fill it for all others. These parts of
# a limit are kept from a client above its share, in addition from a connection of it above its
# share, and in addition from a caller on that connection above its share. Of the last of these
# levels that it is not above, half a part is kept for those that hold nothing yet.
_PARTS = (1 / 8, 1 / 32, 1 / 32)
# A smaller limit of images is used as a whole: it has no places to spare.
_SMALLEST = 16


class Load(NamedTuple):
    """What images take of the queue.

    Attributes:
        items: number of images.
        bytes: encoded.
        decode_seconds: estimated CPU seconds to decode them.
        decode_bytes: estimated memory to decode them, if all were decoded at once.
    """

    items: float
    bytes: float
    decode_seconds: float
    decode_bytes: float

    def exceeds(self, limits: Load) -> bool:
        """Whether any quantity is above its limit."""
        return (
            self[0] > limits[0] or self[1] > limits[1] or self[2] > limits[2] or self[3] > limits[3]
        )


EMPTY = Load(0, 0, 0.0, 0)


class Sender(NamedTuple):
    """Who holds a part of the queue: a caller on a connection of a client."""

    client: str
    connection: str
    caller: int


class Shortage(NamedTuple):
    """Why a load does not fit.

    Attributes:
        quantity: a field of :class:`Load`.
        limit: of the queue.
        held: by all.
        missing: how much must be answered before the load fits.
        clients: that hold some of it, with the one that wants more.
        held_by_client: what the client holds of it.
        share: what a client may hold when the queue is full.
        over_share: whether there is room, but not for this client, connection or caller.
    """

    quantity: str
    limit: float
    held: float
    missing: float
    clients: int
    held_by_client: float
    share: float
    over_share: bool


class _Holder:
    """What a client, a connection or a caller holds, and those that it consists of.

    ``held`` has the quantities of a :class:`Load`; they change with every request, in place.
    """

    __slots__ = ("held", "parts")

    def __init__(self) -> None:
        self.held: list[float] = [*EMPTY]
        self.parts: dict[str | int, _Holder] = {}

    def add(self, load: Load) -> None:
        held = self.held
        held[0] += load[0]
        held[1] += load[1]
        held[2] += load[2]
        held[3] += load[3]

    def remove(self, load: Load) -> None:
        held = self.held
        held[0] -= load[0]
        if not held[0]:
            self.held = [*EMPTY]  # without what rounding left of the seconds
            return
        held[1] -= load[1]
        held[2] -= load[2]
        held[3] -= load[3]


class Shares:
    """Counts what every client, connection and caller holds of a queue.

    With ``n`` clients that hold some of it, the share of each is 1/(n+1) of a limit; connections
    of a client and callers on a connection share its share in the same way. A share is not a
    limit: who is above it may use what is free, except for a part that is kept for others. So a
    client that is alone uses nearly everything, one that comes later finds room at once, and as
    images are answered the queue fills in equal parts.

    Args:
        limits: of the queue.
    """

    def __init__(self, limits: Load) -> None:
        self.limits = limits
        self._all = _Holder()

    @property
    def held(self) -> Load:
        """What all hold together."""
        return Load(*self._all.held)

    def shortage(self, sender: Sender, load: Load, spared: float = 0.0) -> Shortage | None:
        """Why a load does not fit into the queue; None if it does.

        Args:
            sender: whose load it is.
            load: that is wanted.
            spared: part of each limit that is not used.
        """
        if not self._all.held[0]:
            return None
        for number, (limit, held) in enumerate(zip(self.limits, self._all.held, strict=True)):
            wanted = held + load[number]
            if wanted <= limit / 2:  # far from full: also the fastest way
                continue
            allowed = limit - self._kept(sender, load, number)
            if number or limit >= _SMALLEST:
                allowed -= spared * limit
            if load[number] and wanted > allowed:
                return self._shortage(sender, number, wanted - allowed, over=wanted <= limit)
        return None

    def add(self, sender: Sender, load: Load) -> None:
        """Counts a load that was admitted."""
        holder = self._all
        holder.add(load)
        for key in sender:
            part = holder.parts.get(key)
            if part is None:
                part = holder.parts[key] = _Holder()
            part.add(load)
            holder = part

    def remove(self, sender: Sender, load: Load) -> None:
        """Ends the count of a load that was added."""
        path = [self._all]
        for key in sender:
            path.append(path[-1].parts[key])
        for holder in path:
            holder.remove(load)
        for parent, key in zip(reversed(path[:-1]), reversed(sender), strict=True):
            if not parent.parts[key].held[0]:
                del parent.parts[key]

    def _kept(self, sender: Sender, load: Load, number: int) -> float:
        """How much of a limit is kept for others than this sender."""
        limit = self.limits[number]
        if not number and limit < _SMALLEST:
            return 0.0
        share, kept = limit, 0.0
        keys: tuple[str | int, ...] = sender
        holder: _Holder | None = self._all
        for depth, (key, part) in enumerate(zip(keys, _PARTS, strict=True)):
            others = len(holder.parts) if holder is not None else 0
            holder = holder.parts.get(key) if holder is not None else None
            share /= others + (2 if holder is None else 1)
            held = holder.held[number] if holder is not None else 0.0
            if not depth and not held:
                return 0.0
            # Only a caller is known by its size; whoever is new at the other levels may begin.
            over = held + load[number] > max(share, _LEAST[number])
            if not over or (not held and depth < len(_PARTS) - 1):
                return kept + (limit * part / 2 if held else 0.0)
            kept += limit * part
        return kept

    def _shortage(self, sender: Sender, number: int, missing: float, *, over: bool) -> Shortage:
        clients = self._all.parts
        known = clients.get(sender.client)
        count = len(clients) + (known is None)
        return Shortage(
            quantity=Load._fields[number],
            limit=self.limits[number],
            held=self._all.held[number],
            missing=missing,
            clients=count,
            held_by_client=known.held[number] if known is not None else 0.0,
            share=self.limits[number] / (count + 1),
            over_share=over,
        )


# With many callers a share may be less than one image.
_LEAST = Load(1, 0, 0.0, 0)

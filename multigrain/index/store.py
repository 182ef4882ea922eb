"""What every engine of an index does, and the errors that it raises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from multigrain.index.filters import Filter
from multigrain.index.items import Changes, Item

if TYPE_CHECKING:  # the daemon imports this module without loading NumPy
    import numpy as np
    from numpy.typing import NDArray

Effort = Literal["fast", "balanced", "exact"]
"""How thoroughly an index is searched. ``balanced`` finds at least 99 % of the nearest items, and
``exact`` compares the query with all of them."""


class IndexDamagedError(Exception):
    """Files of an index are missing or changed; the message names them."""


class IndexStorageError(Exception):
    """An index cannot be read or written now: full disk, missing permission, store away."""


@dataclass(frozen=True)
class Hit:
    """An item that a search found.

    Args:
        item: the item.
        similarity: inner product of its vector and the query's.
        vector: (C,) if asked for.
    """

    item: Item
    similarity: float
    vector: NDArray[np.float32] | None = None


class VectorStore(Protocol):
    """An engine: it stores items with their vectors and finds the nearest.

    Vectors have one size and are normalized by the caller. When a method that changes the store
    returns, the change is on the disk and survives a loss of power; a change that failed or was
    interrupted is there whole or not at all. Methods block; searches may run in several threads
    while one thread changes the store.

    Methods raise :class:`IndexDamagedError` and :class:`IndexStorageError`.
    """

    @property
    def version(self) -> int:
        """A number that grows with every change."""
        ...

    def count(self, chosen: Filter | None = None) -> int:
        """Returns the number of items, or of those that a filter chooses."""
        ...

    def add(self, items: Sequence[Item], vectors: NDArray[np.float32]) -> None:
        """Adds items with their vectors (N, C), in place of those with the same ids.

        Args:
            items: of different ids.
            vectors: finite.
        """
        ...

    def update(self, changes: Sequence[Changes]) -> list[str]:
        """Changes items but not their vectors; returns the ids that there are not."""
        ...

    def delete(self, chosen: Filter) -> int:
        """Deletes the items that a filter chooses, and returns how many there were."""
        ...

    def get(
        self, ids: Sequence[str], with_vectors: bool = False
    ) -> tuple[list[Item], NDArray[np.float32] | None]:
        """Returns the items with these ids, in this order, without those that there are not."""
        ...

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        chosen: Filter | None = None,
        effort: Effort = "balanced",
        with_vectors: bool = False,
    ) -> list[list[Hit]]:
        """Finds the k most similar items for each query (Q, C), the most similar first."""
        ...

    def scan(
        self, chosen: Filter | None = None, rows: int = 1000
    ) -> Iterator[tuple[list[Item], NDArray[np.float32]]]:
        """Yields all items of the version at the time of the call, with vectors, in order of id."""
        ...

    def maintain(self) -> None:
        """Does what makes searches fast again after changes: compaction, search structures."""
        ...

    def close(self) -> None:
        """Releases what it holds. Nothing is called afterwards."""
        ...

"""Run under strace by test_fsync.py: changes a store of each engine, with a mark before each."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from multigrain.index import lance_store
from multigrain.index.filters import Ids
from multigrain.index.items import Changes
from multigrain.storage import make_folder
from tests.index.data import image_vectors
from tests.index.test_damage import ENGINES, open_store
from tests.index.test_stores import SIZE, items


def mark(name: str) -> None:
    os.path.exists(f"/mark/{name}")


def main(root: Path) -> None:
    lance_store.INDEXED_ROWS = 300
    listed, vectors = items(400), image_vectors(400, SIZE)
    for engine in ENGINES:
        make_folder(root / engine)
        store = open_store(engine, root / engine, create=True)
        mark(f"{engine} add")
        store.add(listed[:350], vectors[:350])
        mark(f"{engine} upsert")
        store.add(listed[300:], vectors[300:])
        mark(f"{engine} update")
        store.update([Changes(listed[1].id, path="moved")])
        mark(f"{engine} delete")
        store.delete(Ids(tuple(item.id for item in listed[:20])))
        mark(f"{engine} maintain")
        store.maintain()
        mark(f"{engine} end")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

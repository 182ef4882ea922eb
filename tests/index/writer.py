"""Changes a store until it is killed, and prints each change when it is acknowledged.

python -m tests.index.writer exact|lance FOLDER SEED
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from multigrain.index import lance_store
from multigrain.index.filters import Ids
from tests.index.data import image_vectors
from tests.index.test_damage import open_store
from tests.index.test_stores import SIZE, items

POOL = 400
BATCH = 40


def main() -> None:
    engine, folder, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    lance_store.INDEXED_ROWS = 300
    lance_store._KEEP = lance_store.timedelta(0)
    store = open_store(engine, folder)
    chosen = random.Random(seed)
    pool, vectors = items(POOL), image_vectors(POOL, SIZE)
    print("ready", flush=True)
    for step in range(10_000):
        rows = sorted(chosen.sample(range(POOL), BATCH))
        operation = chosen.choice(["add", "add", "delete", "maintain"])
        shift = chosen.randrange(POOL)
        print(json.dumps({"begin": operation, "rows": rows, "shift": shift}), flush=True)
        if operation == "add":
            moved = [(row + shift) % POOL for row in rows]
            store.add([pool[row] for row in rows], vectors[moved])
        elif operation == "delete":
            store.delete(Ids(tuple(pool[row].id for row in rows)))
        else:
            store.maintain()
        print(json.dumps({"done": step}), flush=True)


if __name__ == "__main__":
    main()

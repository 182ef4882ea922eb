"""Stores whose process is killed while it changes them: what was acknowledged stays, and a change
that was not is there whole or not at all."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from multigrain.index.store import VectorStore
from tests.environment import program_environment
from tests.index.data import image_vectors
from tests.index.test_damage import ENGINES, open_store
from tests.index.test_stores import SIZE, items
from tests.index.writer import POOL

pytestmark = pytest.mark.process

KILLS = int(os.environ.get("MULTIGRAIN_TEST_KILLS", "3"))

Held = dict[str, int]  # id -> row of its vector


def change(held: Held, begun: dict[str, object]) -> Held:
    """What a store holds after a change."""
    rows, shift = begun["rows"], begun["shift"]
    assert isinstance(rows, list)
    assert isinstance(shift, int)
    ids = [item.id for item in items(POOL)]
    if begun["begin"] == "add":
        return {**held, **{ids[row]: (row + shift) % POOL for row in rows}}
    if begun["begin"] == "delete":
        gone = {ids[row] for row in rows}
        return {id: row for id, row in held.items() if id not in gone}
    return held


def content(store: VectorStore) -> Held:
    """What a store holds; each vector must be one of the pool's."""
    rows = {vector.tobytes(): row for row, vector in enumerate(image_vectors(POOL, SIZE))}
    held: Held = {}
    for part, vectors in store.scan():
        for item, vector in zip(part, vectors, strict=True):
            held[item.id] = rows[vector.tobytes()]
    assert len(held) == store.count()
    return held


def kill_while_writing(
    engine: str, folder: Path, seed: int, seconds: float
) -> list[dict[str, object]]:
    """Runs the writer for a while, kills it, and returns what it printed."""
    command = [sys.executable, "-m", "tests.index.writer", engine, str(folder), str(seed)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=program_environment()
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        timer = threading.Timer(seconds, writer.send_signal, [signal.SIGKILL])
        timer.start()
        lines = writer.stdout.read().splitlines()
        timer.join()
        assert writer.wait() == -signal.SIGKILL
    return [json.loads(line) for line in lines if line.endswith("}")]


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_that_was_acknowledged_is_lost(engine: str, tmp_path: Path) -> None:
    open_store(engine, tmp_path, create=True).close()
    chosen = random.Random(1)
    held: Held = {}
    for kill in range(KILLS):
        printed = kill_while_writing(engine, tmp_path, kill, chosen.uniform(0.0, 1.5))
        begun: dict[str, object] = {}
        acknowledged = True
        for line in printed:
            if "begin" in line:
                begun, acknowledged = line, False
            else:
                held, acknowledged = change(held, begun), True
        store = open_store(engine, tmp_path)
        found = content(store)
        store.close()
        allowed = [held] if acknowledged else [held, change(held, begun)]
        assert found in allowed, f"kill {kill} in {begun.get('begin')}"
        held = found
    assert held

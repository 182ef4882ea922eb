from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from multigrain.events.log import EventWriter, is_locked

HOLD = """
import sys
from pathlib import Path
from multigrain.events.log import EventWriter
writer = EventWriter(Path(sys.argv[1]), "job")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_missing_log_is_not_locked(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "events.jsonl")


def test_the_lock_of_another_process_is_visible_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert is_locked(path)
        assert is_locked(path)
    finally:
        holder.kill()
        holder.communicate()
    assert not is_locked(path)


def test_is_locked_does_not_disturb_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventWriter(path, "job").close()
    stop = threading.Event()

    def probe() -> None:
        while not stop.is_set():
            is_locked(path)

    threads = [threading.Thread(target=probe) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            EventWriter(path, "job").close()
    finally:
        stop.set()
        for thread in threads:
            thread.join()

"""Records which product functions a process calls; Python imports it at the start of a process.

See :mod:`tests.tools.trace_embed`, which sets MULTIGRAIN_TRACE to a folder. The first byte of the
file ``window`` in it says what is recorded: 0 nothing, otherwise the number of the window.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

_FOLDER = os.environ.get("MULTIGRAIN_TRACE")
_ROLES = {"multigrain.engine": "engine", "multigrain_server": "daemon"}


def _record(folder: Path) -> None:
    root = Path(__file__).parents[3]
    products = tuple(f"{root / name}/" for name in ("multigrain", "server", "client"))
    generated = f"{root / 'multigrain' / 'v1'}/"
    command = " ".join(sys.orig_argv)
    role = next((role for text, role in _ROLES.items() if text in command), "client")
    calls: dict[int, list[tuple[str, str]]] = {}
    with (folder / "window").open("r+b") as file:
        window = mmap.mmap(file.fileno(), 1)

    def profile(frame: FrameType, event: str, _argument: Any) -> None:
        number = window[0]
        if number and event == "call":
            code = frame.f_code
            if code.co_filename.startswith(products) and not code.co_filename.startswith(generated):
                name = os.path.relpath(code.co_filename, root)
                calls.setdefault(number, []).append((name, code.co_qualname))

    def save() -> None:
        before = 0
        while True:
            time.sleep(0.005)
            if before and not window[0]:
                time.sleep(0.02)  # for a call that began in time
                text = json.dumps({"role": role, "window": before, "calls": calls.get(before, [])})
                (folder / f"{os.getpid()}-{before}.json").write_text(text)
            before = window[0]

    threading.Thread(target=save, daemon=True).start()
    threading.setprofile(profile)
    sys.setprofile(profile)


if _FOLDER:
    _record(Path(_FOLDER))

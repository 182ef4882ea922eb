"""``python -m multigrain.engine``: serves one model; the daemon starts one for each model."""

from __future__ import annotations

import logging
import os
import sys
import tempfile

from multigrain.engine.decoder_process import start_template
from multigrain.engine.settings import EngineSettings
from multigrain.processes import die_with_parent, keep_files_private
from multigrain.sandbox.apply import SandboxReport, apply
from multigrain.sandbox.policies import engine_sandbox
from multigrain.streams import reserve_descriptors


def main() -> int:
    """Serves until the daemon closes the socket; returns 1 if the bundle cannot be loaded."""
    settings = EngineSettings.parse()
    if settings.parent_pid:
        die_with_parent(settings.parent_pid, exit_code=0)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # Before any library is loaded: libraries start threads, and a process with threads must not
    # fork.
    restricted = settings.sandbox != "off"
    template = start_template(restricted=restricted)
    report = SandboxReport()
    if restricted:
        # Landlock would not hold for threads that exist already either.
        # Packages that MindSpore imports look for a writable folder, unless one is set.
        tempfile.tempdir = os.devnull
        memory = settings.memory_bytes
        report = apply(engine_sandbox(settings.bundle, settings.device, memory_bytes=memory))
    from multigrain.engine.serve import serve

    return serve(settings, template, report)


if __name__ == "__main__":
    reserve_descriptors()
    keep_files_private()
    sys.exit(main())

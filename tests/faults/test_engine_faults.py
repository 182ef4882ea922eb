"""An engine dies, hangs or runs out of memory while callers of two models keep the daemon busy."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import psutil
import pytest
from PIL import Image

from tests.e2e.daemon import Daemon, processes_below
from tests.engine.pictures import encoded, picture
from tests.faults.serving import Seen, amount, callers, samples, serving_daemon, until

pytestmark = pytest.mark.process

# The pause before a replacement grows with every death in a row.
FLAGS = ("--serving-engine-stall-seconds=8", "--serving-restart-backoff-max-seconds=0.5")


def engine_of(daemon: Daemon, model: str) -> psutil.Process | None:
    """The process that answers for a model; its decoder processes have the same command line."""
    for process in processes_below(daemon.data_dir):
        try:
            command = process.cmdline()
            parent = process.parent()
            forked = parent is not None and parent.cmdline() == command
        except psutil.Error:
            continue
        ours = any(f"/models/{model}/" in part for part in command)
        if "multigrain.engine" in command and ours and not forked:
            return process
    return None


async def test_an_engine_that_fails_under_load_is_replaced_and_other_models_are_untouched(
    tmp_path: Path,
) -> None:
    # A crash from outside, a crash inside, a library that waits for ever.
    faults = (signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP) * amount(1, 5)
    daemon = serving_daemon(tmp_path, ["tiny", "other"], FLAGS)
    try:
        hit, spared = Seen(), Seen()
        async with (
            callers(daemon.address, "tiny", 6, hit),
            callers(daemon.address, "other", 2, spared),
        ):
            for fault in faults:
                await more_answers(hit)
                failed = engine_of(daemon, "tiny")
                assert failed is not None
                failed.send_signal(fault)
                await until(lambda: not failed.is_running())  # noqa: B023
                await more_answers(spared)
                await more_answers(hit)
                assert engine_of(daemon, "tiny") not in (None, failed)
        # Answered by the next engine, or refused with UNAVAILABLE.
        assert set(hit.codes) <= {"OK", "UNAVAILABLE"}
        assert hit.without_delay == hit.wrong == 0
        assert set(spared.codes) == {"OK"}
        assert spared.wrong == 0
        assert samples(daemon)["multigrain_engine_restarts_total"] == len(faults)
        log = daemon.log.read_text()
        for reason in (
            "SIGKILL (signal 9)",
            "SIGSEGV (signal 11)",
            "killed: an image was in flight for more than",
        ):
            assert reason in log
    finally:
        daemon.end()


async def more_answers(seen: Seen) -> None:
    before = seen.answered
    await until(lambda: seen.answered >= before + 20)


async def test_decoder_processes_without_memory_leave_the_engine_running_and_the_image_is_answered(
    tmp_path: Path,
) -> None:
    # Takes 100 MB to decode, and little to send.
    large = encoded(Image.new("RGB", (5800, 5800), (200, 90, 40)))
    daemon = serving_daemon(tmp_path, ["tiny", "other"])
    try:
        spared = Seen()
        async with callers(daemon.address, "other", 2, spared):
            engine = engine_of(daemon, "tiny")
            assert engine is not None
            with daemon.client() as client:
                client.embed([large], model="tiny")  # starts a process for large images
                for process in engine.children(recursive=True)[1:]:
                    size = process.memory_info().vms
                    process.rlimit(resource.RLIMIT_AS, (size, size))
                vectors = client.embed([picture(1), large, picture(2)], model="tiny")
            assert vectors.shape[0] == 3
            assert engine_of(daemon, "tiny") == engine
            await more_answers(spared)
        assert set(spared.codes) == {"OK"}
        assert "engine ended" not in daemon.log.read_text()
        assert samples(daemon)["multigrain_engine_restarts_total"] == 0
    finally:
        daemon.end()

"""Every command with a standard output or standard error that is closed, full or left."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from multigrain.v1 import job_pb2, model_pb2
from multigrain_client.cli import progress
from multigrain_client.cli.arguments import Result
from multigrain_client.cli.main import COMMANDS, IMPATIENT, _Stop, main
from multigrain_client.cli.output import Output
from tests.client.events import job_of, training_events
from tests.client.held import Held

# Arguments of every command; {dir} is a folder with a.png, b.png, a folder "photos" and a bundle.
ARGUMENTS = {
    "train": ["--preset", "digits-demo"],
    "watch": ["job-1"],
    "jobs": [],
    "logs": ["job-1"],
    "results": ["job-1"],
    "checkpoints": ["job-1"],
    "artifacts": ["job-1"],
    "compare": ["job-1", "job-1"],
    "presets": [],
    "completion": ["bash"],
    "index": ["list"],
    "track": ["job-1", "--to", "tensorboard", "--dir", "{dir}/tracked"],
    "inspect": ["{dir}/photos"],
    "evaluate": ["--job", "job-1"],
    "export": ["--job", "job-1"],
    "cancel": ["job-1"],
    "resume": ["job-1"],
    "delete": ["job-1"],
    "plot": ["job-1", "--out", "{dir}/result.png"],
    "models": [],
    "load": ["fake@1"],
    "unload": ["fake@1"],
    "alias": ["production", "fake@1"],
    "import": ["{dir}/bundle", "--name", "birds"],
    "download": ["fake@1", "--out", "{dir}/result.tar"],
    "embed": ["{dir}/a.png", "--out", "{dir}/result"],
    "embed-folder": ["{dir}/photos", "--out", "{dir}/result.npy"],
    "classify": ["{dir}/a.png", "{dir}/b.png"],
}
VARIANTS = {
    "jobs of one": ["jobs", "job-1"],
    "train and watch": ["train", "--preset", "x", "--request-id", "same", "--watch"],
    "resume and watch": ["resume", "job-1", "--watch"],
    "embed to output": ["embed", "{dir}/a.png"],
    "help": ["--help"],
    "help of one": ["embed", "--help"],
    "version": ["--version"],
}
EVERY = {name: [name, *words] for name, words in ARGUMENTS.items()} | VARIANTS
RESULTS = {command.name: command.result for command in COMMANDS}


def result_of(name: str) -> Result:
    if name in ("train and watch", "resume and watch"):
        return Result.SERVER
    return RESULTS.get(name, Result.OUTPUT)


class Failing(io.StringIO):
    """Fails after a number of lines.

    Args:
        number: the error.
        lines: written before it.
    """

    def __init__(self, number: int, lines: int = 0) -> None:
        super().__init__()
        self._number = number
        self._lines = lines

    def write(self, text: str) -> int:
        if self.getvalue().count("\n") >= self._lines:
            raise OSError(self._number, os.strerror(self._number))
        return super().write(text)


@pytest.fixture
def folder(state, tmp_path: Path) -> Path:
    """A folder for ARGUMENTS, and a server with what they name."""
    state.events["job-1"] = training_events(4)
    job = state.jobs["job-1"] = job_of("job-1", state=job_pb2.JOB_STATE_SUCCEEDED)
    job.request_id, job.last_seq = "same", 6
    job.metrics["top1"] = 0.5
    state.artifacts = {"workers/worker_0.log": b"a line\nanother line\n"}
    state.models["fake@1"] = model_pb2.Model(name="fake", version=1, runtime="onnxruntime")
    state.bundle = b"a tar archive"
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png", "photos/a.png"):
        (tmp_path / name).write_bytes(b"12345678")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "model.json").write_text("{}")
    return tmp_path


@pytest.fixture
def run_with(server, monkeypatch, folder) -> Callable[..., int]:
    """Runs a command of EVERY with these streams; returns its exit code."""
    monkeypatch.setenv("MULTIGRAIN_SERVER", server.address)
    # Progress lines for every image.
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)

    def run(name: str, out: io.TextIOBase | None, err: io.TextIOBase | None, *more: str) -> int:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        code = main([word.format(dir=folder) for word in [*EVERY[name], *more]])
        assert (sys.stdout, sys.stderr) == (out, err)
        return code

    return run


def result_is_there(name: str, state, folder: Path) -> bool:
    """Whether a command that works on the server or writes a file has done so."""
    if result_of(name) is Result.FILE:
        return any(folder.glob("result*"))
    return bool(state.calls)


def test_arguments_name_every_command() -> None:
    assert ARGUMENTS.keys() == RESULTS.keys()


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("name", EVERY)
def test_full_output_is_one_line_and_exit_code_1(run_with, state, folder, name, more) -> None:
    errors = io.StringIO()
    assert run_with(name, Failing(errno.ENOSPC), errors, *more) == 1
    lines = errors.getvalue().splitlines()
    said = [line for line in lines if "cannot write to standard output: No space left" in line]
    assert len(said) == 1
    assert lines == said or name == "embed-folder"
    if result_of(name) is not Result.OUTPUT:
        assert result_is_there(name, state, folder)


@pytest.mark.parametrize("name", EVERY)
def test_closed_output_is_one_line_and_exit_code_1(run_with, state, folder, name) -> None:
    errors = io.StringIO()
    assert run_with(name, None, errors) == 1
    lines = errors.getvalue().splitlines()
    said = [line for line in lines if "cannot write to standard output: it is closed" in line]
    assert len(said) == 1
    assert lines == said or name == "embed-folder"
    if result_of(name) is Result.OUTPUT:
        # Nothing was computed for nobody.
        assert not state.calls
    else:
        assert result_is_there(name, state, folder)


# Without those whose output is the result, changes with each run, or has a duration.
REPORTS = [
    name
    for name in EVERY
    if result_of(name) is not Result.OUTPUT and name not in ("delete", "embed-folder")
]


@pytest.mark.parametrize("name", REPORTS)
def test_report_that_cannot_be_written_is_in_the_error(run_with, state, folder, name) -> None:
    whole, errors = io.StringIO(), io.StringIO()
    run_with(name, Failing(errno.ENOSPC), errors)
    state.jobs.pop("job-2", None)
    run_with(name, whole, io.StringIO())
    if name.endswith("watch"):
        assert "the job continues (multigrain watch job-1" in errors.getvalue()
    else:
        assert f"({whole.getvalue().rstrip()})" in errors.getvalue()


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("name", EVERY)
def test_reader_that_has_left_ends_no_work_and_fakes_no_success(
    run_with, state, folder, name, more
) -> None:
    errors = io.StringIO()
    code = run_with(name, Failing(errno.EPIPE), errors, *more)
    assert "Traceback" not in errors.getvalue()
    if result_of(name) is Result.FILE:
        assert code == 0
        assert result_is_there(name, state, folder)
    else:
        assert code == 141
        assert errors.getvalue() == ""


@pytest.mark.parametrize(
    "stream", [None, Failing(errno.EPIPE), Failing(errno.ENOSPC)], ids=["closed", "left", "full"]
)
@pytest.mark.parametrize("name", EVERY)
def test_trouble_of_standard_error_changes_nothing(run_with, state, folder, name, stream) -> None:
    output = io.StringIO()
    assert run_with(name, output, stream) == 0
    assert output.getvalue()
    if result_of(name) is not Result.OUTPUT:
        assert result_is_there(name, state, folder)


def test_both_streams_may_be_closed(run_with, folder) -> None:
    assert run_with("embed-folder", None, None) == 1
    assert len(np.load(folder / "result.npy")) == 1
    assert run_with("models", None, None) == 1


@pytest.mark.parametrize("lines", [1, 3])
def test_watch_ends_when_its_reader_leaves(run_with, lines) -> None:
    assert run_with("watch", Failing(errno.EPIPE, lines), io.StringIO()) == 141


def test_wrong_command_line_with_a_closed_standard_error(server, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["fly"]) == 2


def test_progress_of_a_folder_is_lost_but_not_the_vectors(run_with, folder) -> None:
    for number in range(100):
        (folder / "photos" / f"{number}.png").write_bytes(b"%d" % number)
    stream = Failing(errno.EPIPE, 1)
    # Both streams end in the same pipe, as with 2>&1.
    assert run_with("embed-folder", stream, stream) == 0
    assert len(np.load(folder / "result.npy")) == 101
    assert (
        stream.getvalue() == "embedding: 1 of 101, 0 images/s\n"
        or stream.getvalue().count("\n") == 1
    )


SHELL = {
    "models >&-": (1, "multigrain models: cannot write to standard output: it is closed"),
    "models --json > /dev/full": (
        1,
        "multigrain models: cannot write to standard output: No space left on device",
    ),
    "jobs > /dev/full": (
        1,
        "multigrain jobs: cannot write to standard output: No space left on device",
    ),
    "--help > /dev/full": (
        1,
        "multigrain: cannot write to standard output: No space left on device",
    ),
    "models 2>&-": (0, ""),
    "models <&-": (0, ""),
    "models >&- 2>&- <&-": (1, ""),
    "classify photos/a.png > /dev/full": (
        1,
        "multigrain classify: cannot write to standard output: No space left on device",
    ),
    "embed-folder photos --out v.npy 2>&- <&-": (0, ""),
    "watch job-1 | head -1": (141, ""),
    "embed-folder photos --out w.npy 2>&1 | head -1": (0, ""),
}


@pytest.mark.process
def test_programs_with_broken_streams(server, folder) -> None:
    environment = {**os.environ, "MULTIGRAIN_SERVER": server.address, "PYTHONUNBUFFERED": ""}
    program = f"{sys.executable} -m multigrain_client.cli"
    started = [
        (
            line,
            expected,
            subprocess.Popen(
                ["bash", "-c", f"{program} {line}; exit ${{PIPESTATUS[0]}}"],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ),
        )
        for line, expected in SHELL.items()
    ]
    for line, (code, said), process in started:
        _, errors = process.communicate(timeout=120)
        shown = [text for text in errors.splitlines() if "embedding:" not in text]
        assert (process.returncode, "\n".join(shown)) == (code, said), line
    for name in ("v.npy", "w.npy"):
        assert np.load(folder / name).shape == (1, 8)


@pytest.mark.process
def test_work_goes_on_when_the_reader_of_its_progress_leaves(server, tmp_path) -> None:
    """Case 13: thousands of links to one image, and `head -1`."""
    (tmp_path / "many").mkdir()
    (tmp_path / "digit.png").write_bytes(b"12345678")
    for number in range(3000):
        (tmp_path / "many" / f"{number:04d}.png").symlink_to(tmp_path / "digit.png")
    script = (
        f"{sys.executable} -m multigrain_client.cli embed-folder many --out v.npy 2>&1 | head -1; "
        "echo ${PIPESTATUS[0]}"
    )
    environment = {**os.environ, "MULTIGRAIN_SERVER": server.address}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""
    assert np.load(tmp_path / "v.npy").shape == (3000, 8)
    assert not list(tmp_path.glob(".*"))


def test_json_of_a_file_command_goes_to_the_output(run_with, folder) -> None:
    output = io.StringIO()
    assert run_with("embed-folder", output, io.StringIO(), "--json") == 0
    assert json.loads(output.getvalue())["file"] == str(folder / "result.npy")


def test_second_interrupt_does_not_disturb_the_end() -> None:
    now = [10.0]
    stop = _Stop(lambda: now[0])
    with pytest.raises(KeyboardInterrupt):
        stop(signal.SIGINT, None)
    now[0] += 1.0
    stop(signal.SIGINT, None)
    now[0] += IMPATIENT
    with pytest.raises(KeyboardInterrupt):
        stop(signal.SIGINT, None)


@pytest.mark.parametrize("name", ["watch", "train and watch"])
def test_interrupted_watch_says_that_the_job_continues(run_with, state, monkeypatch, name) -> None:
    monkeypatch.setattr(
        "multigrain_client.cli.jobs.show", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)
    )
    errors = io.StringIO()
    assert run_with(name, io.StringIO(), errors) == 143
    assert (
        "the job continues (multigrain watch job-1, multigrain cancel job-1)" in errors.getvalue()
    )


@pytest.mark.process
def test_interrupt_does_not_wait_for_calls_in_flight(server, state, folder) -> None:
    held = Held(state, "Embed")
    command = [sys.executable, "-m", "multigrain_client.cli", "embed", *["a.png"] * 130]
    environment = {**os.environ, "MULTIGRAIN_SERVER": server.address}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert held.arrived.acquire(timeout=60)
            process.send_signal(signal.SIGINT)
            assert "Traceback" not in process.communicate(timeout=30)[1]
            assert process.returncode == 130
        finally:
            held.release()


@pytest.mark.process
def test_non_blocking_output_of_a_slow_reader_is_whole(server, state, folder) -> None:
    state.events["job-1"] = training_events(3000)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    command = [sys.executable, "-m", "multigrain_client.cli", "watch", "job-1"]
    environment = {**os.environ, "MULTIGRAIN_SERVER": server.address}
    with subprocess.Popen(
        command, env=environment, stdout=writing, stderr=subprocess.PIPE
    ) as process:
        os.close(writing)
        size = fcntl.fcntl(reading, fcntl.F_GETPIPE_SZ)
        waiting, end = bytearray(4), time.monotonic() + 60
        while int.from_bytes(waiting, sys.byteorder) < size - 4096:  # one more line does not fit
            assert time.monotonic() < end
            time.sleep(0.01)
            fcntl.ioctl(reading, termios.FIONREAD, waiting)
        with os.fdopen(reading, "rb") as pipe:
            lines = pipe.read(1).decode() + pipe.read().decode()
        assert process.stderr is not None
        assert (process.wait(60), process.stderr.read()) == (0, b"")
    assert lines.count(" loss ") == 2 * 3000  # "loss  epoch" and "loss 1.0000"


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
def test_output_that_is_progress_only_never_fails(number) -> None:
    output = Output(Failing(number), io.StringIO(), as_json=False, progress_only=True)
    output.line("the demo trains")
    output.table(["a"], [["b"]])
    output.done({}, "and goes on")
    output.check()

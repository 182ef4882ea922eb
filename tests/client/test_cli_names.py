"""Names from elsewhere that are no text, control a terminal, or do not fit its encoding."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pyarrow.parquet
import pytest

from multigrain.text import cell_width, original_path
from multigrain.v1 import common_pb2, job_pb2, model_pb2
from multigrain_client import InvalidRequest
from multigrain_client.cli.live import LiveDisplay
from multigrain_client.cli.main import main
from multigrain_client.cli.output import Output
from multigrain_client.cli.progress import LineDisplay, choose
from multigrain_client.plotting import Curve, plot_losses
from tests.client.events import job_of, loss_event, training_events
from tests.client.faults import Fault

HOSTILE = "測試 ✓ ü \x1b[31m\x9b2J\u202egpj\u2066\n[red]x[/] :smile: $\\foo$ _"
SHOWN = r"測試 ✓ ü \x1b[31m\u009b2J\u202egpj\u2066\x0a[red]x[/] :smile: $\foo$ _"
LATIN = b"latin\xe9.png"


@pytest.fixture
def hostile(state, tmp_path: Path) -> Path:
    """A server and a folder in which everything has a hostile name."""
    job = state.jobs["job-1"] = job_of("job-1", state=job_pb2.JOB_STATE_SUCCEEDED)
    job.name = HOSTILE
    job.labels["team"] = HOSTILE
    job.state_message = HOSTILE
    job.metrics[HOSTILE] = 0.5
    job.artifact.model = HOSTILE
    job.last_checkpoint.name = HOSTILE
    job.error.kind = common_pb2.ERROR_KIND_INTERNAL
    job.error.message, job.error.log_tail = HOSTILE, f"{HOSTILE}\n{HOSTILE}"
    failed = state.jobs["job-2"] = job_pb2.Job()
    failed.CopyFrom(job)
    failed.job_id, failed.state = "job-2", job_pb2.JOB_STATE_FAILED
    events = training_events(2)
    hostile = [
        job_pb2.JobEvent(state=job_pb2.StateEvent(state=2, message=HOSTILE)),
        job_pb2.JobEvent(checkpoint=job_pb2.CheckpointEvent(name=HOSTILE)),
        job_pb2.JobEvent(log=job_pb2.LogEvent(message=f"{HOSTILE}\n\x1b[2J{HOSTILE}", level=3)),
        job_pb2.JobEvent(evaluation=job_pb2.EvaluationEvent(metrics={HOSTILE: 1.0})),
        job_pb2.JobEvent(artifact=job_pb2.ArtifactEvent(model=HOSTILE, files={HOSTILE: 1})),
    ]
    for seq, event in enumerate(hostile, len(events) + 1):
        event.seq, event.job_id, event.attempt = seq, "job-1", 1
    skipped = loss_event(9, len(events) + len(hostile) + 1)
    skipped.loss.skipped, skipped.loss.skipped_because = True, HOSTILE
    state.events["job-1"] = state.events["job-2"] = [*events, *hostile, skipped]
    job.last_seq = failed.last_seq = skipped.seq
    state.models[HOSTILE] = model_pb2.Model(
        name=HOSTILE, version=1, trunk=HOSTILE, runtime=HOSTILE, aliases=[HOSTILE]
    )
    state.class_name = HOSTILE
    folder = tmp_path / HOSTILE.replace("/", "")
    folder.mkdir()
    for name in (b"a.png", LATIN, b"b\x1b[31m.png", "ü ñ 日本.png".encode()):
        (folder / os.fsdecode(name)).write_bytes(b"12345678")
    (folder / os.fsdecode(b"bad\xff.png")).write_bytes(b"bad")
    return folder


COMMANDS = {
    "jobs": ["jobs"],
    "job": ["jobs", "job-1"],
    "watch": ["watch", "job-1"],
    "watch of a failed job": ["watch", "job-2"],
    "models": ["models"],
    "load": ["load", HOSTILE],
    "unload": ["unload", HOSTILE],
    "alias": ["alias", HOSTILE, HOSTILE],
    "cancel": ["cancel", "job-1"],
    "delete a model": ["delete", "--model", HOSTILE],
    "train": ["train", "--preset", "x", "--name", HOSTILE, "--label", f"a={HOSTILE}"],
    "unknown job": ["jobs", HOSTILE],
    "unknown option": ["jobs", f"--{HOSTILE}"],
    "wrong value": ["train", "--set", HOSTILE],
    "unknown field": ["train", "--set", f"{HOSTILE}=1"],
    "missing file": ["train", "--spec", f"{{dir}}/{HOSTILE}"],
    "missing bundle": ["import", f"{{dir}}/{HOSTILE}"],
    "missing folder": ["embed-folder", f"{{dir}}/{HOSTILE}", "--out", "{dir}/v.npy"],
    "classify": ["classify", "{dir}/a.png", "{dir}/ü ñ 日本.png", "{dir}/{latin}", "{dir}/{bad}"],
    "embed": ["embed", "{dir}/a.png", "{dir}/{latin}", "{dir}/{bad}"],
    "embed to a file": ["embed", "{dir}/a.png", "{dir}/{bad}", "--out", "{dir}/{latin}.npy"],
    "embed-folder": ["embed-folder", "{dir}", "--out", "{dir}/v.npy"],
    "plot": ["plot", "job-1", "--out", "{dir}/{latin}.png"],
}
ENCODINGS = ["ascii", "latin-1", "cp1252", "utf-8", "euc-jp", "gb18030"]


class Terminal(io.TextIOWrapper):
    """What a program would write in this encoding."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict")

    def text(self) -> str:
        self.flush()
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode(self.encoding)


@pytest.fixture
def run_in(server, monkeypatch, hostile) -> Callable[..., tuple[int, str, str]]:
    """Runs a command of COMMANDS with streams of an encoding."""
    monkeypatch.setenv("MULTIGRAIN_SERVER", server.address)

    def run(encoding: str, name: str, *more: str) -> tuple[int, str, str]:
        out, err = Terminal(encoding), Terminal(encoding)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        names = {"{dir}": hostile, "{latin}": os.fsdecode(LATIN), "{bad}": "bad\udcff.png"}
        words = [*COMMANDS[name], *more]
        for key, value in names.items():
            words = [word.replace(key, str(value)) for word in words]
        code = main(words)
        return code, out.text(), err.text()

    return run


def controls(text: str) -> list[str]:
    """What a terminal must not get: all but printable characters, lines, and joiners."""
    return [
        character
        for character in text
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character != "\n"
    ]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_command_prints_hostile_names_in_every_encoding(run_in, encoding) -> None:
    """Case 23, and names with control characters."""
    for name in COMMANDS:
        if name == "plot" and encoding != "ascii":
            continue  # takes seconds
        code, out, err = run_in(encoding, name)
        assert code in (0, 1, 2), name
        assert "Traceback" not in err, name
        assert not controls(out + err), name
        forged = [line for line in (out + err).splitlines() if line.startswith("[red]")]
        # The newline of a name forges no line; a log has lines.
        assert not forged or name == "watch of a failed job", name
        assert (
            r"\x1b[31m" in out + err
            or r"\udcff" in out + err
            or r"\xff" in out + err
            or (name in ("cancel", "train"))
        ), name
        if encoding == "utf-8" and name in ("jobs", "job", "models", "classify"):
            assert SHOWN in out


# What the program itself may send to a terminal: colors, cursor, and lines of the live display.
OWN = re.compile(r"\x1b\[[0-9;?]*[mAKhl]|[\r\n]")


def test_every_command_sends_nothing_hostile_to_a_terminal(server, hostile, monkeypatch) -> None:
    monkeypatch.setenv("MULTIGRAIN_SERVER", server.address)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, command in COMMANDS.items():
        if name == "plot":
            continue  # takes seconds
        words = [word.replace("{dir}", str(hostile)) for word in command]
        words = [
            word.replace("{latin}", os.fsdecode(LATIN)).replace("{bad}", "bad\udcff.png")
            for word in words
        ]
        sent = _on_terminal(words, monkeypatch)
        for sequence in ("\x1b[31m測", "\x9b", "\x1b[2J", "\x1b]", "\x07"):
            assert sequence not in sent, name
        assert not controls(OWN.sub("", sent).replace("\t", "")), name


def _on_terminal(words: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a command sends to a terminal, both streams."""
    ours, terminal = pty.openpty()
    sent = bytearray()

    def collect() -> None:
        # EIO when the terminal is closed.
        with contextlib.suppress(OSError):
            while data := os.read(ours, 65536):
                sent.extend(data)

    reader = threading.Thread(target=collect)
    reader.start()
    try:
        with open(terminal, "w", encoding="utf-8") as stream:
            monkeypatch.setattr(sys, "stdout", stream)
            monkeypatch.setattr(sys, "stderr", stream)
            assert stream.isatty()
            main(words)
    finally:
        reader.join(30)
        os.close(ours)
    return sent.decode()


JSON_COMMANDS = ["jobs", "job", "watch", "models", "load", "classify", "embed", "embed-folder"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_has_the_exact_names_in_every_encoding(run_in, encoding) -> None:
    for name in JSON_COMMANDS:
        _, out, _ = run_in(encoding, name, "--json")
        assert not controls(out), name
        values = [json.loads(line) for line in out.splitlines()]
        json.dumps(values, ensure_ascii=False).encode()  # no unpaired surrogates
        if name in ("jobs", "job"):
            job = values[0][0] if name == "jobs" else values[0]
            assert job["name"] == job["labels"]["team"] == HOSTILE
        if name in ("classify", "embed"):
            assert original_path(values[0][-2]["image"]).endswith(os.fsdecode(LATIN))
        if name == "classify":
            assert values[0][0]["classes"][0]["label"] == f"{HOSTILE} 0"


def test_error_of_the_server_is_printed_safely(run_in, state) -> None:
    state.faults["ListJobs"].append(Fault(grpc.StatusCode.NOT_FOUND, HOSTILE, "NOT_FOUND"))
    code, _, err = run_in("ascii", "jobs")
    assert code == 1
    assert not controls(err)
    assert r"\x1b[31m" in err


@pytest.mark.parametrize("out", ["v.npy", "v.parquet"])
def test_folder_with_a_name_that_is_not_utf8_is_embedded(client, tmp_path, out) -> None:
    """Case 12."""
    folder = tmp_path / "folder"
    folder.mkdir()
    names = [b"a.png", b"b.png", LATIN, rb"c\xe9.png", b"d\n.png"]
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(b"12345678")
    result = client.embed_folder(folder, tmp_path / out)
    assert (result.images, result.errors) == (5, ())
    if out == "v.npy":
        assert np.load(tmp_path / out).shape == (5, 8)
        lines = (tmp_path / "v.csv").read_text(encoding="utf-8").splitlines()
        stored = [line.split(",")[1] for line in lines[1:]]
    else:
        stored = pyarrow.parquet.read_table(tmp_path / out).column("path").to_pylist()
    assert r"latin\xe9.png" in stored
    assert sorted(os.fsencode(original_path(path)) for path in stored) == sorted(names)


@pytest.mark.parametrize("name", ["v\udce9.npy", "v\udce9.parquet"])
def test_result_may_have_a_name_that_is_not_utf8(client, tmp_path, name) -> None:
    folder = tmp_path / os.fsdecode(b"f\xe9")
    folder.mkdir()
    (folder / "a.png").write_bytes(b"12345678")
    assert client.embed_folder(folder, tmp_path / name).images == 1
    assert (tmp_path / name).is_file()


def test_table_is_aligned_on_a_terminal(run_in, state) -> None:
    state.jobs["job-2"].name = "plain"
    for encoding in ("utf-8", "ascii"):
        state.models[HOSTILE].name = "測試ｱ e\u0301"
        _, out, _ = run_in(encoding, "models")
        head, row = out.splitlines()
        assert cell_width(row[: row.index("UNSPECIFIED")]) == head.index("STATE")


@pytest.mark.parametrize(
    ("text", "width"), [("abc", 3), ("測試", 4), ("e\u0301", 1), ("ｱ", 1), ("\uff21", 2), ("👍", 2)]
)
def test_cell_width(text: str, width: int) -> None:
    assert cell_width(text) == width


def test_live_display_interprets_nothing_in_a_name(hostile, state) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    with LiveDisplay(Output(stream, as_json=False), state.jobs["job-1"]) as display:
        for event in state.events["job-1"]:
            display.event(event)
        display.end(state.jobs["job-1"])
    text = stream.getvalue().replace("\n", "")
    assert "[red]x[/] :smile:" in text
    assert "\x1b[31m測" not in text
    assert "\u202e" not in text
    assert r"\x1b[31m\u009b2J" in text


@pytest.mark.parametrize("term", ["dumb", "unknown", "DUMB"])
def test_dumb_terminal_gets_lines(hostile, state, monkeypatch, term) -> None:
    monkeypatch.setenv("TERM", term)
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    display = choose(Output(stream, as_json=False), state.jobs["job-1"])
    assert isinstance(display, LineDisplay)


@pytest.mark.parametrize("columns", ["1", "0", "-5", "x"])
@pytest.mark.parametrize("words", [["--help"], ["embed", "--help"], ["jobs"], ["fly"]])
def test_tiny_terminal(run, hostile, monkeypatch, columns, words) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    code, out, err = run(*words)
    assert code in (0, 2)
    assert out + err


def test_plot_shows_a_name_as_it_is(tmp_path, state, hostile, monkeypatch) -> None:
    from matplotlib.figure import Figure

    legends = []
    save = Figure.savefig

    def keep(figure, *args, **options) -> None:
        legends.extend(text.get_text() for text in figure.axes[0].get_legend().get_texts())
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    points = [point for event in training_events(3) for point in _points(event)]
    names = ["_hidden", "$\\frac$", "a $ b $ c", "\x1b[31m"]
    plot_losses([Curve(name, points) for name in names], tmp_path / "loss.png")
    assert legends == ["_hidden: loss", "$\\frac$: loss", "a $ b $ c: loss", r"\x1b[31m: loss"]


def _points(event):
    from multigrain_client.jobs import loss_point

    return [loss_point(event)] if event.HasField("loss") else []


@pytest.mark.parametrize(
    "call",
    [
        lambda client, bad: client.start_training(preset=bad),
        lambda client, bad: client.start_training(preset="x", name=bad),
        lambda client, bad: client.start_training(preset="x", labels={"a": bad}),
        lambda client, bad: client.start_training(preset="x", labels={bad: "a"}),
        lambda client, bad: client.start_training(preset="x", request_id=bad),
        lambda client, bad: client.start_training({"dataset": {"train_path": bad}}),
        lambda client, bad: client.evaluate(checkpoint_path=bad),
        lambda client, bad: client.evaluate(model=bad, dataset_path=bad),
        lambda client, bad: client.evaluate(job=bad, tasks=[bad]),
        lambda client, bad: client.export(job=bad, model_name=bad),
        lambda client, bad: client.job(bad),
        lambda client, bad: list(client.jobs(labels={"a": bad})),
        lambda client, bad: list(client.jobs(name_contains=bad)),
        lambda client, bad: list(client.jobs(states=[bad])),
        lambda client, bad: client.cancel(bad),
        lambda client, bad: list(client.stream_events(bad)),
        lambda client, bad: list(client.stream_losses(bad)),
        lambda client, bad: client.wait(bad),
        lambda client, bad: list(client.models(bad)),
        lambda client, bad: client.load_model(bad, runtime=bad),
        lambda client, bad: client.set_alias(bad, bad),
        lambda client, bad: client.embed([b"x"], model=bad),
        lambda client, bad: list(client.embed_stream([b"x"], model=bad)),
        lambda client, bad: client.classify([b"x"], model=bad),
        lambda client, bad: client.health(bad),
        lambda client, bad: client.download_model(bad, "/tmp/never.tar"),
    ],
)
def test_string_that_is_not_utf8_is_an_invalid_request(client, state, call) -> None:
    with pytest.raises(InvalidRequest) as caught:
        call(client, "caf\udce9")
    assert r"caf\xe9" in str(caught.value) or r"caf\udce9" in str(caught.value)
    assert not state.calls


def test_argument_that_is_not_utf8_is_a_usage_error(run) -> None:
    code, _, err = run("train", "--preset", "x", "--name", "caf\udce9")
    assert (code, err) == (
        2,
        r"multigrain train: name: 'caf\xe9' is not UTF-8 text: rename it, or correct it" + "\n",
    )


def test_file_whose_name_begins_with_a_dash(run, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-x.png").write_bytes(b"1")
    assert run("classify", "--", "-x.png")[0] == 0
    assert run("classify", "./-x.png")[0] == 0
    code, _, err = run("classify", "-x.png")
    assert code == 2
    assert "-x.png" in err or "IMAGE" in err


@pytest.mark.process
@pytest.mark.parametrize(
    "variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}, {"LC_ALL": "POSIX"}]
)
def test_program_in_a_narrow_locale(server, hostile, variables) -> None:
    environment = {**os.environ, "MULTIGRAIN_SERVER": server.address, **variables}
    program = [sys.executable, "-m", "multigrain_client.cli"]
    for words in (["jobs"], ["jobs", "--json"], ["classify", "ü ñ 日本.png", LATIN]):
        done = subprocess.run(
            [*program, *words], cwd=hostile, env=environment, capture_output=True, timeout=120
        )
        assert (done.returncode, done.stderr) == (0, b""), words
        assert not controls(done.stdout.decode()), words

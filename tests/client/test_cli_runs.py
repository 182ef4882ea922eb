"""Commands that show what jobs have left, and how jobs are named on the command line."""

from __future__ import annotations

import json
import os
import pty
import threading

import pytest

from multigrain.v1 import job_pb2
from multigrain_client.cli.output import Output
from tests.client.events import job_of

ONE = "train-20260131-120000-aaaaaa"
TWO = "train-20260131-130000-bbbbbb"

FILES = {
    "results/metrics.json": json.dumps({"step": 20, "metrics": {"top1": 0.5}}).encode(),
    "results/best/metrics.json": json.dumps({"step": 10, "metrics": {"top1": 0.75}}).encode(),
    "results/best/classes.csv": b"class,images,recognised,top1\ncat,4,4,1.0\ndog,4,2,0.5\n",
    "workers/worker_0.log": b"one\ntwo\n\x1b[31mthree\n",
    "workers/runner.log": b"of the runner\n",
    "checkpoints/step-00000010/model.safetensors": b"weights",
}


@pytest.fixture
def jobs(state):
    for job_id, epochs in ((TWO, 7), (ONE, 3)):
        job = state.jobs[job_id] = job_of(job_id, state=job_pb2.JOB_STATE_SUCCEEDED)
        job.training.schedule.epochs, job.training.seed = epochs, 5
        job.metrics["top1"] = epochs / 10
        job.best_checkpoint.name, job.best_checkpoint.step = "step-00000010", 10
    events = [
        job_pb2.JobEvent(
            seq=n, checkpoint=job_pb2.CheckpointEvent(name=f"step-{10 * n:08}", step=10 * n)
        )
        for n in (1, 2)
    ]
    state.events[ONE] = events
    state.artifacts = dict(FILES)
    return state


def test_a_log_is_printed_without_what_controls_a_terminal(run, jobs):
    assert run("logs", ONE) == (0, "one\ntwo\n\\x1b[31mthree\n", "")
    assert run("logs", ONE, "--lines", "1") == (0, "\\x1b[31mthree\n", "")
    assert run("logs", ONE, "--file", "runner.log") == (0, "of the runner\n", "")
    code, _, err = run("logs", ONE, "--file", "none.log")
    assert code == 1
    assert "there are runner.log, worker_0.log" in err


def test_a_log_is_followed_until_the_job_ends(run, jobs, monkeypatch):
    jobs.jobs[ONE].state = job_pb2.JOB_STATE_RUNNING
    pauses = iter([b"fo", b"ur\nfive", b""])

    def sleep(seconds):
        data = next(pauses)
        jobs.artifacts["workers/worker_0.log"] += data
        if not data:
            jobs.jobs[ONE].state = job_pb2.JOB_STATE_SUCCEEDED

    monkeypatch.setattr("multigrain_client.cli.runs.time.sleep", sleep)
    code, out, _ = run("logs", ONE, "-f")
    assert (code, out.splitlines()[3:]) == (0, ["four", "five"])


def test_results_are_those_of_the_best_evaluation(run, jobs):
    code, out, _ = run("results", ONE)
    assert code == 0
    assert "step 10 (best evaluation)" in out
    assert "0.7500" in out
    assert out.index("dog") < out.index("cat")  # the lowest accuracy first
    as_json = json.loads(run("results", ONE, "--json")[1])
    assert as_json["metrics"] == {"top1": 0.75}
    assert len(as_json["files"]) == 3
    jobs.artifacts.clear()
    jobs.jobs[ONE].ClearField("metrics")
    code, _, err = run("results", ONE)
    assert code == 1
    assert f"multigrain evaluate --job {ONE}" in err


def test_only_checkpoints_that_are_kept_are_listed(run, jobs):
    code, out, _ = run("checkpoints", ONE)
    assert code == 0
    assert [line.split() for line in out.splitlines()[1:]] == [
        ["step-00000010", "10", "0", "0", "B", "best"]
    ]


def test_files_are_listed_and_downloaded(run, jobs, tmp_path):
    code, out, _ = run("artifacts", ONE)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == sorted(FILES)
    code, out, _ = run("artifacts", ONE, "--kind", "log", "--out", str(tmp_path / "new"))
    found = {p.name: p.read_bytes() for p in (tmp_path / "new").rglob("*.log")}
    assert (code, found) == (0, {n.split("/")[1]: d for n, d in FILES.items() if "workers" in n})
    code, _, err = run("artifacts", ONE, "results/none")
    assert code == 1
    assert "has no file results/none" in err


@pytest.mark.parametrize("name", ["results/../../up", "/etc/up", "results/../../../up"])
def test_a_server_cannot_choose_another_folder(run, jobs, tmp_path, name):
    jobs.artifacts = {"results/a": b"1"}
    real = job_pb2.Artifact(name=name, kind=job_pb2.ARTIFACT_KIND_RESULT)
    jobs.extra_artifacts = [real]
    code, _, err = run("artifacts", ONE, "--out", str(tmp_path / "out"))
    assert code == 2
    assert "outside of" in err
    assert not [p for p in tmp_path.rglob("*") if p.name == "up"]


def test_jobs_are_compared_by_metrics_and_differing_settings(run, jobs):
    code, out, _ = run("compare", ONE, TWO)
    rows = {line.split("  ")[0]: line.split()[-2:] for line in out.splitlines()[1:]}
    assert code == 0
    assert rows["top1"] == ["0.3000", "0.7000"]
    assert rows["schedule.epochs"] == ["3", "7"]
    assert "seed" not in rows
    assert run("compare", ONE)[0] == 2
    assert json.loads(run("compare", ONE, TWO, "--json")[1])["settings"] == {
        "schedule.epochs": ["3", "7"]
    }


def test_presets_are_listed_and_shown_with_what_they_extend(run, state):
    code, out, _ = run("presets")
    assert code == 0
    assert "digits-demo" in out
    code, out, _ = run("presets", "photos-tiny")
    fields = dict(line.split(maxsplit=1) for line in out.splitlines()[2:])
    assert fields["schedule.epochs"] == "100"
    assert len(fields) > 10  # with those of photos-small
    code, _, err = run("presets", "none")
    assert code == 2
    assert "digits-demo" in err
    assert not state.calls


@pytest.mark.parametrize("command", ["watch", "logs", "results", "jobs", "cancel", "resume"])
def test_a_job_is_named_by_the_beginning_of_its_id_or_last(run, jobs, command):
    for text, job_id in (("train-20260131-12", ONE), ("last", TWO)):
        jobs.requests.clear()
        assert run(command, text)[0] == 0
        ids = {r.job_id for r in jobs.requests if hasattr(r, "job_id")}
        # "jobs" needs no second call: the listing has the job.
        assert ids in ({job_id}, set())
    code, _, err = run(command, "train-2026")
    assert code == 2
    assert ONE in err
    assert TWO in err


def test_misspelled_commands_and_states_are_guessed(run, state):
    code, _, err = run("trian")
    assert code == 2
    assert "did you mean 'train'?" in err
    code, _, err = run("jobs", "--state", "foo")
    assert code == 2
    assert "queued, starting, running, stopping, succeeded, failed, cancelled" in err
    code, _, err = run("jobs", "--state", "runing")
    assert "did you mean 'running'?" in err
    code, _, err = run("jobs", "--kind", "foo")
    assert "training, evaluation, export" in err
    assert not state.calls


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_the_completion_script_has_every_command(run, state, shell):
    code, out, _ = run("completion", shell)
    assert code == 0
    assert all(command in out for command in ("train", "artifacts", "presets"))


def shown(columns: int, rows: list[list[str]], monkeypatch) -> list[str]:
    """What a terminal of this width gets of a table."""
    monkeypatch.setenv("COLUMNS", str(columns))
    reader, writer = pty.openpty()
    text = bytearray()

    def read() -> None:
        try:
            while data := os.read(reader, 4096):
                text.extend(data)
        except OSError:  # the other end is closed
            pass

    thread = threading.Thread(target=read)
    thread.start()
    with os.fdopen(writer, "w") as stream:
        Output(stream, as_json=False).table(["JOB", "STATE", "NAME"], rows)
    thread.join()
    os.close(reader)
    return text.decode().splitlines()


def test_tables_fit_the_terminal_and_states_have_colors(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    rows = [["train-1", "FAILED", "a name that is far too long " * 4], ["train-2", "RUNNING", "b"]]
    colored = shown(60, rows, monkeypatch)
    assert "\x1b[31mFAILED\x1b[0m" in colored[1]
    monkeypatch.setenv("NO_COLOR", "1")
    lines = shown(60, rows, monkeypatch)
    assert "\x1b" not in "".join(lines)
    assert max(map(len, lines)) == 60
    assert lines[1].endswith("~")
    assert lines[2].split() == ["train-2", "RUNNING", "b"]
    assert "too long a name" in shown(200, rows, monkeypatch)[1]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", b"[]"),
        ("metrics.json", b'{"metrics": {"top1"'),
        ("metrics.json", b'{"metrics": []}'),
        ("metrics.json", b'{"metrics": {"top1": "good"}}'),
        ("metrics.json", b"{}"),
        ("metrics.json", b"[" * 100_000),
        ("classes.csv", b"class,images\ncat,4\n"),
        ("classes.csv", b"class,images,recognised,top1\ncat,4\n"),
        ("classes.csv", b"class,images,recognised,top1\ncat,4,4,1,5\n"),
        ("classes.csv", b"class,images,recognised,top1\ncat,4,4,good\n"),
        ("classes.csv", b"class,images,recognised,top1\n" + b"x" * 200_000 + b",4,4,1\n"),
    ],
)
@pytest.mark.usefixtures("csv_limit")
def test_damaged_results_are_named(run, jobs, name, content):
    jobs.artifacts[f"results/best/{name}"] = content
    code, _, err = run("results", ONE)
    assert code == 1
    assert f"results/best/{name} of the job is damaged" in err

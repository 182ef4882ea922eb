"""The commands against a fake server."""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys

import grpc
import pytest

from multigrain.v1 import job_pb2, model_pb2
from multigrain_client import methods
from multigrain_client.cli.arguments import count, positive, seconds
from multigrain_client.cli.main import COMMANDS, build_parser
from multigrain_client.cli.output import Output
from multigrain_client.cli.progress import LineDisplay, choose
from multigrain_client.methods import Method
from tests.client.events import job_of, training_events
from tests.client.faults import Fault
from tests.client.specs import AMBIGUOUS_SPECS


@pytest.fixture
def trained(state):
    """A training job that has ended, with its events."""
    state.events["job-1"] = training_events(4)
    job = state.jobs["job-1"] = job_of("job-1", state=job_pb2.JOB_STATE_SUCCEEDED)
    job.name, job.last_seq = "digits", 6
    job.metrics["top1"] = 0.98
    return job


def test_train_prints_the_job_and_how_to_follow_it(run, state):
    code, out, _ = run(
        "train", "--preset", "digits-demo", "--set", "schedule.epochs=3", "--set", "seed=7",
        "--label", "team=search",
    )  # fmt: skip
    assert code == 0
    assert out.strip() == "job-1  started; follow it with: multigrain watch job-1"
    spec = state.jobs["job-1"].training
    assert (spec.preset, spec.schedule.epochs, spec.seed) == ("digits-demo", 3, 7)
    assert dict(state.jobs["job-1"].labels) == {"team": "search"}


def test_a_dry_run_starts_nothing(run, state):
    state.preset_reason = "photos-small: 2,400 images, CPU"
    code, out, err = run("train", "--train", "/photos", "--dry-run", "--name", "birds")
    assert (code, out.strip()) == (0, "would start: training job birds")
    assert err.strip() == "preset photos-small: 2,400 images, CPU"
    assert not state.jobs
    for command in (("evaluate", "--job", "j"), ("export", "--job", "j", "--model-name", "m")):
        assert run(*command, "--dry-run")[0] == 0
        assert run(*command, "--print-spec")[0] == 0
    assert not state.jobs
    started = [
        r
        for r in state.requests
        if not isinstance(r, job_pb2.ListJobsRequest | job_pb2.GetJobRequest)
    ]
    assert all(request.validate_only for request in started)
    assert run("train", "--dry-run", "--watch")[0] == 2


def test_a_printed_specification_can_be_read_back(run, state, tmp_path):
    options = (
        "--train", "/photos", "--set", "model.gem_p=Infinity", "--set", "schedule.epochs=3",
        "--set", "schedule.learning_rate.milestones=1,2.5", "--set", "evaluation.metric=loss",
    )  # fmt: skip
    code, printed, _ = run("train", *options, "--print-spec")
    assert code == 0
    (tmp_path / "spec.yaml").write_text(printed)
    assert run("train", "--spec", str(tmp_path / "spec.yaml"), "--print-spec")[1] == printed
    assert state.requests[0].spec == state.requests[1].spec
    code, as_json, _ = run("train", *options, "--print-spec", "--json")
    assert json.loads(as_json)["schedule"]["epochs"] == 3


def test_inspect_shows_what_is_in_a_folder_and_the_plan(run, state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state.preset_reason = "photos-tiny: 30 images, CPU"
    state.warnings = ["1 of 30 checked images cannot be read"]
    code, out, err = run("inspect", "photos", "--max-images", "20", "--set", "model.trunk=resnet18")
    assert code == 0
    (request,) = state.requests
    assert request.spec.dataset.train_path == str(tmp_path / "photos")
    assert (request.max_images, request.spec.model.trunk) == (20, "resnet18")
    assert "30 images in 2 classes" in out
    assert "20 checked, a random sample: 1 unreadable, shorter side 64 to 200 px" in out
    assert "left out: 3 hidden" in out
    assert "1 pairs among 30 images" in out
    assert "not searched, for lack of time" in out
    assert "jay 20, owl 10" in out
    assert "photos-tiny: 30 images, CPU" in out
    assert "1,200 steps of 96 images in 30 epochs" in out
    assert "about 10 min (by the cost of the network)" in out
    assert "about 3.0 GiB" in out
    assert err.strip() == "multigrain inspect: warning: 1 of 30 checked images cannot be read"
    assert json.loads(run("inspect", "photos", "--json")[1])["train"]["images"] == 30
    assert run("inspect", "")[0] == 2


def test_train_reads_a_file_and_makes_paths_absolute(run, state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text("preset: digits-demo\nschedule:\n  epochs: 9\n")
    code, out, _ = run(
        "train", "--spec", "spec.yaml", "--train", "digits", "--set", "schedule.epochs=2", "--json"
    )
    assert code == 0
    spec = json.loads(out)["training"]
    assert spec["schedule"]["epochs"] == 2
    assert spec["dataset"]["train_path"] == str(tmp_path / "digits")


@pytest.mark.parametrize("where", ["--token", "MULTIGRAIN_TOKEN"])
@pytest.mark.parametrize(
    "token", ["l\udce9secret", "secret\u00e9", "sec\tret", "\x1bsecret", "a\nb"]
)
def test_a_token_that_no_header_can_hold_is_a_usage_error(run, state, monkeypatch, where, token):
    words = ["models"]
    if where == "--token":
        words += ["--token", token]
    else:
        monkeypatch.setenv(where, token)
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("multigrain models: token: character ")
    assert err.count("\n") == 1
    assert "sec" not in err
    assert not state.calls


def test_the_newline_of_a_token_file_is_dropped(run, state, monkeypatch):
    monkeypatch.setenv("MULTIGRAIN_TOKEN", "secret\r\n")
    assert run("models")[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--train", ""),
        ("train", "--train", "digits", "--val", ""),
        ("evaluate", "--job", "job-1", "--dataset", ""),
        ("evaluate", "--checkpoint-path", "", "--dataset", "digits"),
        ("export", "--checkpoint-path", "", "--model-name", "m"),
        ("import", ""),
    ],
)
def test_an_empty_path_is_not_the_current_directory(run, state, arguments):
    """As of a shell variable that is not set."""
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "the path is empty" in err
    assert err.count("\n") == 1
    assert not [name for name in state.calls if name.startswith("Start")]


@pytest.mark.parametrize("command", ["train", "evaluate", "export"])
def test_warnings_of_the_submission_are_printed(run, state, command):
    state.warnings = ["dataset /d: all 2 class folders hold folders only", "dataset /v: \x1b[31m"]
    code, out, err = run(command)
    assert code == 0
    assert out.startswith("job-1  started")
    assert err == (
        f"multigrain {command}: warning: {state.warnings[0]}\n"
        f"multigrain {command}: warning: dataset /v: \\x1b[31m\n"
    )
    code, out, err = run(command, "--json")
    assert json.loads(out)["warnings"] == state.warnings
    assert err.count("warning") == 2


@pytest.mark.parametrize(("text", "problem"), AMBIGUOUS_SPECS)
@pytest.mark.parametrize("command", ["train", "evaluate", "export"])
def test_ambiguous_spec_file_is_a_usage_error(run, state, tmp_path, command, text, problem):
    file = tmp_path / "spec.yaml"
    file.write_text(text)
    code, out, err = run(command, "--spec", str(file))
    assert (code, out) == (2, "")
    assert err.startswith(f"multigrain {command}: ")
    assert problem in err
    assert err.count("\n") == 1
    assert not state.calls


def test_unknown_key_is_a_usage_error_on_one_line(run, state):
    code, out, err = run("train", "--set", "schedule.epoch=3")
    assert (code, out) == (2, "")
    assert err == ("multigrain train: spec.schedule.epoch: no such field; did you mean 'epochs'?\n")
    assert not state.calls


@pytest.mark.parametrize("arguments", [[], ["fly"], ["train", "--set", "x"], ["watch"]])
def test_wrong_arguments_exit_with_2(run, arguments):
    code, _, err = run(*arguments)
    assert code == 2
    assert err.startswith("usage: multigrain")


# An option with a number -> a command that has it, whether 0 is one, and a number that is right.
NUMBERS = {
    "--timeout": (["models"], False, "2.5"),
    "--limit": (["jobs"], True, "3"),
    "--after-seq": (["watch", "job-1"], True, "3"),
    "--every": (["watch", "job-1"], False, "3"),
    "--version": (["import", "bundle"], True, "3"),
    "--top-k": (["classify", "a.png"], False, "3"),
    "embed --resolution": (["embed", "a.png"], True, "224"),
    "evaluate --resolution": (["evaluate"], False, "224"),
    "--max-images": (["inspect", "photos"], True, "100"),
    "--lines": (["logs", "job-1"], False, "3"),
    "--max-seconds": (["inspect", "photos"], False, "2.5"),
}
WRONG_NUMBERS = ["-1", "nan", "inf", "-inf", "1e400", "1e10", "99999999999", "", "x", "1_0_x"]


def test_every_number_of_the_command_line_is_tested():
    """A number has a type, which argparse calls."""
    commands = next(
        action
        for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    ).choices
    found = {
        option
        for parser in commands.values()
        for action in parser._actions
        for option in action.option_strings
        if action.type in (count, positive, seconds, int, float)
    }
    assert found == {name.split()[-1] for name in NUMBERS}


@pytest.mark.parametrize("name", NUMBERS)
def test_wrong_numbers_are_usage_errors(run, state, name):
    command, zero, right = NUMBERS[name]
    option = name.split()[-1]
    for text in [*WRONG_NUMBERS, *([] if zero else ["0"])]:
        code, out, err = run(*command, f"{option}={text}")
        assert (code, out) == (2, ""), text
        assert f"argument {option}: {text!r} is not a " in err
    assert not state.calls
    build_parser().parse_args([*command, f"{option}={right}"])


def test_watch_prints_one_line_per_event_into_a_pipe(run, trained):
    code, out, _ = run("watch", "job-1")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "training job job-1 digits"
    assert lines[1].endswith("state  RUNNING")
    assert lines[2].endswith(
        "loss  epoch 1/2  step 1/10  loss 1.0000  classification 2.0000  instance 0.5000  "
        "lr 0.01  damping 0.03  123.4 images/s  eta 1 min 1 s"
    )
    assert lines[-1] == "job job-1 SUCCEEDED  top1 0.9800"
    assert len(lines) == 8


def test_watch_every_shows_only_every_nth_step(run, trained):
    _, out, _ = run("watch", "job-1", "--every", "3")
    (line,) = (line for line in out.splitlines() if " loss " in line)
    assert "step 3/10" in line


def test_watch_json_prints_every_event_then_the_job(run, trained):
    code, out, _ = run("watch", "job-1", "--json")
    values = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [value["seq"] for value in values[:-1]] == [1, 2, 3, 4, 5, 6]
    assert values[1]["loss"]["step"] == 1
    assert values[1]["time"] == "2026-01-31T12:00:00.500Z"
    assert values[0]["state"]["state"] == "RUNNING"
    assert values[-1]["state"] == "SUCCEEDED"
    assert values[-1]["metrics"] == {"top1": 0.98}


def test_failed_job_exits_with_1_and_prints_the_log_tail(run, state, trained):
    trained.state = job_pb2.JOB_STATE_FAILED
    trained.error.message = "worker 1 was killed by signal 9"
    trained.error.log_tail = "out of memory\n"
    code, _, err = run("watch", "job-1")
    assert code == 1
    assert err == "multigrain: job job-1 FAILED: worker 1 was killed by signal 9\nout of memory\n"


def test_train_with_watch_follows_the_job(run, state):
    state.events["job-1"] = training_events(2)
    state.jobs["job-1"] = job_of("job-1", state=job_pb2.JOB_STATE_SUCCEEDED)
    state.jobs["job-1"].request_id = "same"
    code, out, _ = run("train", "--preset", "x", "--request-id", "same", "--watch")
    assert code == 0
    assert out.splitlines()[-1] == "job job-1 SUCCEEDED"


def test_jobs_lists_all_or_shows_one(run, state, trained):
    state.jobs["job-2"] = job_of("job-2", kind=job_pb2.JOB_KIND_EXPORT)
    code, out, _ = run("jobs")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["JOB", "job-1", "job-2"]
    _, out, _ = run("jobs", "--state", "succeeded", "--json")
    assert [job["job_id"] for job in json.loads(out)] == ["job-1"]
    _, out, _ = run("jobs", "job-1")
    assert "state       SUCCEEDED" in out
    assert "metrics     top1 0.9800" in out


def test_cancel_resume_and_delete(run, state, trained):
    assert run("cancel", "job-1")[1] == "job-1  STOPPING\n"
    assert run("resume", "job-1", "--json")[0] == 0
    assert run("delete", "job-1")[1] == "job-1  deleted\n"
    assert state.jobs == {}
    state.models["fake@1"] = model_pb2.Model(name="fake", version=1)
    assert run("delete", "--model", "fake@1", "--json")[1] == '{"deleted": "fake@1"}\n'


def test_models_load_unload_and_alias(run, state):
    state.models["fake@1"] = model_pb2.Model(
        name="fake", version=1, trunk="resnet18", embedding_size=512, runtime="onnxruntime",
        load_seconds=1.25,
    )  # fmt: skip
    _, out, _ = run("models")
    assert out.splitlines()[1].split()[:4] == ["fake@1", "UNSPECIFIED", "resnet18", "512"]
    state.default_model = "fake@1"
    assert run("models")[1].splitlines()[1].startswith("fake@1 (default)  UNSPECIFIED")
    assert json.loads(run("models", "--json")[1])[0]["is_default"] is True
    assert run("load", "fake@1")[1] == "fake@1  ready after 1.2 s on onnxruntime\n"
    assert json.loads(run("models", "--json")[1])[0]["state"] == "READY"
    assert run("alias", "production", "fake@1")[1] == "production -> fake@1\n"
    assert run("alias", "production", "--remove")[1] == "production  removed\n"
    assert run("unload", "fake@1")[1] == "fake@1  unloaded\n"


def test_server_option_works_before_and_after_the_command(run, server, monkeypatch):
    monkeypatch.setenv("MULTIGRAIN_SERVER", "127.0.0.1:1")
    assert run("--server", server.address, "--json", "jobs")[:2] == (0, "[]\n")
    assert run("--server", "127.0.0.1:1", "jobs", "--server", server.address)[0] == 0
    assert run("--timeout", "0.2", "jobs")[0] == 1


def test_import_and_download_a_bundle(run, state, tmp_path):
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "model.json").write_text("{}")
    code, out, _ = run("import", str(bundle), "--name", "birds", "--version", "3")
    assert (code, out) == (0, "birds@3  imported; serve it with: multigrain load birds@3\n")
    archive = tmp_path / "birds.tar"
    code, out, _ = run("download", "birds@3", "--out", str(archive), "--json")
    assert code == 0
    assert json.loads(out) == {"file": str(archive), "bytes": len(archive.read_bytes())}
    assert run("import", str(tmp_path / "lost"))[0] == 2


@pytest.mark.parametrize(
    "words",
    [
        ("classify", "a.png", "--top-k", "-1"),
        ("embed", "a.png", "--resolution", "5000000000"),
        ("watch", "job-1", "--after-seq", "-1"),
        ("jobs", "--limit", "-1"),
    ],
)
def test_invalid_number_is_a_usage_error_without_a_traceback(run, trained, words):
    code, _, err = run(*words)
    assert code == 2
    assert "whole number" in err.splitlines()[-1]


def test_plot_plots_the_jobs_that_exist(run, trained, tmp_path):
    code, out, err = run("plot", "lost", "job-1", "--out", str(tmp_path / "loss.png"))
    assert code == 1
    assert out.endswith("loss.png: 4 points\n")
    assert err == "multigrain plot: no job lost\n"
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert run("plot", "lost", "--out", str(tmp_path / "none.png"))[0] == 1
    assert not (tmp_path / "none.png").exists()


def test_plot_writes_a_png(run, trained, tmp_path):
    code, out, _ = run("plot", "job-1", "--out", str(tmp_path / "loss.png"))
    assert code == 0
    assert out.endswith("loss.png: 4 points\n")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_plot_without_points_or_matplotlib_prints_the_reason(run, trained, state, monkeypatch):
    state.events["job-1"] = []
    code, _, err = run("plot", "job-1")
    assert (code, err) == (2, "multigrain plot: there is no loss point to plot yet\n")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = run("plot", "job-1")
    assert code == 1
    assert "pip install 'multigrain[plot]'" in err


def test_closed_pipe_ends_quietly_as_by_sigpipe(server, state, trained):
    state.events["job-1"] = training_events(2000)
    command = [sys.executable, "-m", "multigrain_client.cli", "watch", "job-1"]
    environment = {**os.environ, "MULTIGRAIN_SERVER": server.address}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) == 141


def test_terminal_gets_the_live_display(server, trained):
    import pty

    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "multigrain_client.cli", "watch", "job-1"]
    environment = {
        **os.environ,
        "MULTIGRAIN_SERVER": server.address,
        "TERM": "xterm",
        "COLUMNS": "100",
    }
    with subprocess.Popen(
        command, stdout=follower, stderr=subprocess.PIPE, env=environment
    ) as process:
        os.close(follower)
        shown = b""
        try:
            while piece := os.read(leader, 65536):
                shown += piece
        except OSError:
            # Linux reports the end of a terminal like this.
            pass
        assert process.wait(20) == 0
    os.close(leader)
    text = shown.decode()
    assert "SUCCEEDED" in text
    assert "100%" in text
    assert "█" in text
    assert "images/s" in text


def test_terminal_without_rich_gets_lines(trained, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delitem(sys.modules, "multigrain_client.cli.live", raising=False)
    monkeypatch.setitem(sys.modules, "rich.live", None)
    assert isinstance(choose(Output(Terminal(), as_json=False), trained), LineDisplay)


def test_spec_file_without_pyyaml_names_the_extra_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    monkeypatch.delitem(sys.modules, "multigrain.strict_yaml", raising=False)
    code, _, err = run("train", "--spec", str(tmp_path / "spec.yaml"))
    assert code == 1
    assert err.endswith("pip install 'multigrain[cli]'\n")


def test_evaluate_and_export_commands_start_jobs(run, state):
    _, out, _ = run(
        "evaluate", "--job", "job-7", "--checkpoint", "best", "--dataset", "/d", "--json"
    )
    assert json.loads(out)["evaluation"]["weights"] == {"job_id": "job-7", "checkpoint": "best"}
    _, out, _ = run(
        "evaluate", "--model", "digits", "--dataset", "/d", "--task", "groups", "--transform",
        "rect", "--resolution", "800", "--group-queries", "first", "--json",
    )  # fmt: skip
    spec = json.loads(out)["evaluation"]
    assert (spec["tasks"], spec["transform"], spec["resolution"]) == (["groups"], "rect", 800)
    assert spec["group_queries"] == "first"
    code, out, _ = run("export", "--job", "job-7", "--model-name", "digits", "--format", "onnx")
    assert code == 0
    assert list(state.jobs["job-3"].export.formats) == ["onnx"]


def test_error_from_the_server_is_one_line_and_exits_with_1(run, state):
    state.faults["GetJob"].append(
        Fault(grpc.StatusCode.NOT_FOUND, "there is no job job-9;\nsee: jobs", "NOT_FOUND")
    )
    code, out, err = run("watch", "job-9")
    assert (code, out) == (1, "")
    assert err == "multigrain watch: there is no job job-9; see: jobs\n"


def test_rpc_names_in_server_errors_are_shown_as_commands(run, state):
    refused = "digits@1 is loaded: UnloadModel first; UnloadModels is no call"
    state.faults["DeleteModel"].append(
        Fault(grpc.StatusCode.FAILED_PRECONDITION, refused, "WRONG_STATE")
    )
    code, _, err = run("delete", "--model", "digits@1")
    assert code == 1
    assert err == (
        "multigrain delete: digits@1 is loaded: `multigrain unload` first; "
        "UnloadModels is no call\n"
    )


def test_commands_name_existing_rpcs():
    known = {method.name for method in vars(methods).values() if isinstance(method, Method)}
    assert {command.call for command in COMMANDS if command.call} < known


def test_unreachable_server_is_named(run):
    code, _, err = run("jobs", "--server", "127.0.0.1:1")
    assert code == 1
    assert err.startswith("multigrain jobs: cannot reach the server at 127.0.0.1:1: ")
    assert err.count("\n") == 1

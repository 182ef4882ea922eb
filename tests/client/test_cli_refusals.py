"""What the command line says when the server refuses, or is away."""

from __future__ import annotations

import grpc

from multigrain_client import methods
from multigrain_client.cli.main import COMMANDS
from multigrain_client.methods import Method
from tests.client.faults import Fault


def test_a_refusal_of_the_server_exits_with_1_in_one_line(run, state):
    state.faults["GetJob"].append(
        Fault(grpc.StatusCode.NOT_FOUND, "there is no job job-9;\nsee: jobs", "NOT_FOUND")
    )
    code, out, err = run("watch", "job-9")
    assert (code, out) == (1, "")
    assert err == "multigrain watch: there is no job job-9; see: jobs\n"


def test_a_call_that_the_server_speaks_of_is_shown_as_its_command(run, state):
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


def test_the_calls_of_commands_are_those_of_the_contract():
    known = {method.name for method in vars(methods).values() if isinstance(method, Method)}
    assert {command.call for command in COMMANDS if command.call} < known


def test_a_server_that_is_away_is_named(run):
    code, _, err = run("jobs", "--server", "127.0.0.1:1")
    assert code == 1
    assert err.startswith("multigrain jobs: cannot reach the server at 127.0.0.1:1: ")
    assert err.count("\n") == 1

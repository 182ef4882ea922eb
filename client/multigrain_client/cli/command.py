"""What a command is, and what every command shares."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from multigrain_client.channel import Tls
from multigrain_client.cli.output import Output
from multigrain_client.sync.client import Client

DEFAULT_SERVER = "127.0.0.1:50051"

OK = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130


@dataclass(frozen=True)
class Context:
    """What a command works with.

    Attributes:
        arguments: parsed, of this command.
        output: where results go.
        connect: makes a client for the server of the arguments.
    """

    arguments: argparse.Namespace
    output: Output
    connect: Callable[[], Client]


@dataclass(frozen=True)
class Command:
    """One sub-command.

    Attributes:
        name: the word on the command line.
        help: one line.
        configure: adds its arguments.
        run: does it; returns the exit code.
        call: what it calls on the server ("LoadModel"), if that goes by another name there.
    """

    name: str
    help: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Context], int]
    call: str = ""


def shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what every command takes, before its name or after it. Defaults: shared_defaults."""
    group = parser.add_argument_group("connection and output")
    group.add_argument(
        "--server",
        metavar="HOST:PORT",
        help="address of the server, or several separated by commas "
        f"(environment: MULTIGRAIN_SERVER; default {DEFAULT_SERVER})",
    )
    group.add_argument(
        "--token",
        help="sent as 'authorization: Bearer TOKEN' (environment: MULTIGRAIN_TOKEN, which keeps "
        "it out of the process list)",
    )
    group.add_argument("--tls", action="store_true", help="use TLS with the system's authorities")
    group.add_argument("--ca", metavar="FILE", help="use TLS and trust these authorities (PEM)")
    group.add_argument("--cert", metavar="FILE", help="client certificate (PEM); needs --key")
    group.add_argument("--key", metavar="FILE", help="its private key (PEM)")
    group.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="for each call; default 60, models 900"
    )
    group.add_argument("--json", action="store_true", help="print JSON for programs")


def shared_defaults() -> dict[str, str | None]:
    """What the environment says of the shared arguments."""
    return {
        "server": os.environ.get("MULTIGRAIN_SERVER", DEFAULT_SERVER),
        "token": os.environ.get("MULTIGRAIN_TOKEN"),
    }


def connect(arguments: argparse.Namespace) -> Client:
    """A client for the server that the arguments name."""
    tls: Tls | bool | None = None
    if arguments.ca or arguments.cert or arguments.key:
        tls = Tls(ca=arguments.ca, certificate=arguments.cert, key=arguments.key)
    elif arguments.tls:
        tls = True
    return Client(
        arguments.server,
        token=arguments.token,
        tls=tls,
        timeout=60.0 if arguments.timeout is None else arguments.timeout,
    )


def make_context(arguments: argparse.Namespace) -> Context:
    output = Output(sys.stdout, as_json=arguments.json)
    return Context(arguments, output, lambda: connect(arguments))

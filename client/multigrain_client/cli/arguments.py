"""Commands, the options that they share, and KEY=VALUE arguments."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from google.protobuf.descriptor import EnumDescriptor

from multigrain.files import parse_json
from multigrain.v1.job_pb2 import Job
from multigrain_client.channel import Tls
from multigrain_client.cli.output import Output
from multigrain_client.errors import InvalidRequest, NotFound
from multigrain_client.json_format import enum_names
from multigrain_client.requests import absolute_path
from multigrain_client.retry import LONGEST_TIMEOUT, check_timeout
from multigrain_client.sync.client import Client

DEFAULT_SERVER = "127.0.0.1:50051"
SERVER_VARIABLE = "MULTIGRAIN_SERVER"

OK = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130


@dataclass(frozen=True)
class Context:
    """What a command works with.

    Attributes:
        arguments: the parsed arguments of this command.
        output: where results go.
    """

    arguments: argparse.Namespace
    output: Output

    def connect(self) -> Client:
        """A client for the server in the arguments."""
        arguments = self.arguments
        tls: Tls | bool | None = None
        if arguments.ca or arguments.cert or arguments.key:
            tls = Tls(ca=arguments.ca, certificate=arguments.cert, key=arguments.key)
        elif arguments.tls:
            tls = True
        source = "--server"
        server = arguments.server
        if server is None:
            source, server = SERVER_VARIABLE, os.environ.get(SERVER_VARIABLE, DEFAULT_SERVER)
        try:
            return Client(
                server,
                token=arguments.token,
                tls=tls,
                timeout=60.0 if arguments.timeout is None else arguments.timeout,
            )
        except InvalidRequest as error:
            message = str(error)
            if message.startswith("target: "):
                message = f"{source}: {message.removeprefix('target: ')}"
            raise InvalidRequest(message) from None


class Result(Enum):
    """Where the result of a command is, which decides what trouble of the output means.

    Attributes:
        OUTPUT: on standard output; without one the command has nothing to do.
        SERVER: on the server. Standard output only reports what was done.
        FILE: in a file. Standard output only reports it, and its reader may leave before.
    """

    OUTPUT = 1
    SERVER = 2
    FILE = 3


@dataclass(frozen=True)
class Command:
    """One subcommand.

    Attributes:
        name: its name on the command line.
        help: one line.
        configure: adds its arguments.
        run: executes it; returns the exit code.
        result: where its result is.
        call: the RPC that it makes ("LoadModel"), if errors of the server may mention it.
    """

    name: str
    help: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Context], int]
    result: Result
    call: str = ""


def add_shared_options(parser: argparse.ArgumentParser) -> None:
    """The options of every command, before or after its name. Defaults: ``shared_defaults``."""
    group = parser.add_argument_group("connection and output")
    group.add_argument(
        "--server",
        metavar="HOST:PORT",
        help="address of the server, or several separated by commas "
        f"(environment: {SERVER_VARIABLE}; default {DEFAULT_SERVER})",
    )
    group.add_argument(
        "--token",
        help="sent as 'authorization: Bearer TOKEN' (environment: MULTIGRAIN_TOKEN, which keeps "
        "it out of the process list)",
    )
    group.add_argument("--tls", action="store_true", help="use TLS with the system's authorities")
    group.add_argument("--ca", metavar="FILE", help="use TLS and trust these authorities (PEM)")
    group.add_argument("--cert", metavar="FILE", help="client certificate (PEM); needs --key")
    group.add_argument("--key", metavar="FILE", help="private key of the certificate (PEM)")
    group.add_argument(
        "--timeout",
        type=seconds,
        metavar="SECONDS",
        help="for each call; default 60, or 900 to load or transfer a model",
    )
    group.add_argument("--json", action="store_true", help="print JSON")


def shared_defaults() -> dict[str, str | None]:
    """Defaults of the shared options from the environment."""
    return {
        "token": os.environ.get("MULTIGRAIN_TOKEN"),
    }


def absolute(path: str | None, option: str) -> str | None:
    """The path, or the name of weights such as job:ID, that a request names.

    Raises:
        InvalidRequest: if it is empty, as of a shell variable that is not set: it would be the
            current directory.
    """
    if path == "":
        raise InvalidRequest(f"{option}: the path is empty; give a path or leave the option out")
    return path and absolute_path(path)


def add_spec_options(parser: argparse.ArgumentParser) -> None:
    """The options of commands that take a specification."""
    parser.add_argument("--spec", metavar="FILE", help="YAML file with a specification")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        type=setting,
        metavar="KEY=VALUE",
        help="one field that overrides the preset and the file, such as schedule.epochs=3, or "
        "evaluation.tasks=classification,copy_detection; repeatable",
    )


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """The options of commands that start a job."""
    add_spec_options(parser)
    parser.add_argument("--name", default="", help="display name of the job")
    parser.add_argument(
        "--label",
        dest="labels",
        action="append",
        type=label,
        metavar="KEY=VALUE",
        help="label of the job; repeatable",
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--watch", action="store_true", help="follow the job until it ends")
    action.add_argument(
        "--dry-run",
        action="store_true",
        help="have the server check everything and say what it would run; start nothing",
    )
    action.add_argument(
        "--print-spec",
        action="store_true",
        help="likewise, and print the resolved specification as YAML, for --spec",
    )


def setting(text: str) -> tuple[str, Any]:
    """``schedule.epochs=3`` -> ("schedule.epochs", 3).

    Numbers, true, false and [lists] are parsed as JSON, everything else is a string; a list field
    splits it at commas.

    Raises:
        ArgumentTypeError: without a key and "=".
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, such as schedule.epochs=3")
    try:
        return key.strip(), parse_json(value)
    except ValueError:
        return key.strip(), value.strip()


def label(text: str) -> tuple[str, str]:
    """``team=search`` -> ("team", "search").

    Raises:
        ArgumentTypeError: without a key and "=".
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, such as team=search")
    return key, value


def count(text: str) -> int:
    """A whole number from 0.

    Raises:
        ArgumentTypeError: for anything else.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 999999999")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1.

    Raises:
        ArgumentTypeError: for anything else.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 999999999")
    return int(text)


def seconds(text: str) -> float:
    """A timeout.

    Raises:
        ArgumentTypeError: for anything but a number above 0, see ``check_timeout``.
    """
    try:
        return check_timeout(float(text)) or 0.0
    except (ValueError, InvalidRequest):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds above 0, at most {LONGEST_TIMEOUT:g}"
        ) from None


def pairs(found: Sequence[tuple[str, Any]] | None) -> dict[str, Any]:
    """KEY=VALUE pairs as a dict; the last value of a key wins, as usual for options."""
    return dict(found or ())


_JOB_ID = re.compile(r"[a-z]+-\d{8}-\d{6}-[0-9a-f]{6}")


def job_id(parser: argparse.ArgumentParser) -> None:
    """Adds the job of a command."""
    parser.add_argument(
        "job", help="id of the job, or its beginning if no other begins so; last = the newest job"
    )


def find(client: Client, text: str) -> Job:
    """The job that an argument names.

    Raises:
        NotFound, InvalidRequest: as ``Client.find_job``.
    """
    return client.job(text) if _JOB_ID.fullmatch(text) else client.find_job(text)


def found_id(client: Client, text: str) -> str:
    """The id of the job that an argument names; the text itself if there is no such job.

    The server then says so, as it knows what the id is for.

    Raises:
        InvalidRequest: if it is the beginning of several ids.
    """
    if _JOB_ID.fullmatch(text):
        return text
    try:
        return client.find_job(text).job_id
    except NotFound:
        return text


def one_of(enum: EnumDescriptor) -> Callable[[str], str]:
    """A type of arguments: names of an enum, with a guess for one that is misspelled."""
    known = [name.lower() for name in enum_names(enum)]
    known = [name for name in known if name != "unspecified"]

    def check(text: str) -> str:
        if text.lower() not in known:
            raise argparse.ArgumentTypeError(unknown(text, known))
        return text

    return check


def unknown(text: str, known: Sequence[str]) -> str:
    """Says that a word is not known, which one may be meant, and which there are."""
    guess = difflib.get_close_matches(text.lower(), known, 1)
    hint = f"did you mean {guess[0]!r}? " if guess else ""
    return f"{text!r} is unknown: {hint}choose from {', '.join(known)}"

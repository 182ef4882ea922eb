"""The configuration from file, environment and flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from multigrain_server.config import ServerConfig
from multigrain_server.settings_sources import ConfigError, dump, options, parse

TLS = ["--tls-certificate", "c.pem", "--tls-key", "k.pem"]
TOKENS = ["--access-tokens", "tokens.yaml"]
ANYONE = "--access-allow-anonymous"


def test_flag_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("grpc:\n  max_message_mib: 5\n  max_concurrent_streams: 7\ndevices: 'cpu:2'\n")
    environment = {"MULTIGRAIN_GRPC__MAX_MESSAGE_MIB": "6", "MULTIGRAIN_DEVICES": "cpu:3"}
    arguments = ["--config", str(file), "--devices", "cpu:4"]
    config = parse(arguments, environment).config
    assert config.devices == "cpu:4"
    assert config.grpc.max_message_mib == 6
    assert config.grpc.max_concurrent_streams == 7
    assert config.shutdown.keep_serving_seconds == 0


@pytest.mark.parametrize("option", list(options()), ids=lambda option: option.key)
def test_every_key_has_a_description(option: object) -> None:
    assert option.info.description  # type: ignore[attr-defined]


def test_printed_configuration_reads_back_the_same(tmp_path: Path) -> None:
    arguments = ["--data-dir", str(tmp_path), "--data-root", "/a", "--data-root", "/b: c"]
    config = parse([*arguments, "--log-level", "debug", "--devices", "cpu:2,gpu:0-3"], {}).config
    file = tmp_path / "printed.yaml"
    file.write_text(dump(config))
    assert parse(["--config", str(file)], {}).config == config
    assert config.data_root == (Path("/a"), Path("/b: c"))


def test_lists_in_the_environment_are_split_at_commas() -> None:
    assert parse([], {"MULTIGRAIN_DATA_ROOT": "/a, /b"}).config.data_root == (
        Path("/a"),
        Path("/b"),
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--devics", "cpu:1"], "did you mean --devices"),
        (["--devices", "cpu:x"], "devices: .*cpu:N"),
        (["--devices", "gpu:3-1"], "empty range"),
        (["--listen", "nowhere"], "listen: .*is not an address"),
        (["--listen", "::1:5"], "brackets"),
        (["--listen", "127.0.0.1:70000"], r"listen: .*1 to 65535.* \(from --listen\)$"),
        (["--listen", "5005"], r"listen: .*give HOST:PORT, such as '127\.0\.0\.1:5005'"),
        (["--listen", "http://127.0.0.1:5"], "listen: .* is a URL"),
        (["--http-listen", "h:x"], r"^http_listen: 'h:x' is not an address: .*--http-listen\)$"),
        (["--http-listen", "unix:/s"], "^http_listen: must be a host and a port"),
        (["--listen", "0.0.0.0:50051"], "--insecure"),
        (["--listen", "0.0.0.0:50051", "--access-tokens", "t.yaml"], "--insecure"),
        (["--http-listen", "0.0.0.0:0", *TLS], "http_listen: .*--insecure"),
        (
            ["--listen", "0.0.0.0:0", "--insecure"],
            r"^listen: .*access\.tokens .*--new-token.*tls\.client_ca.*--access-allow-anonymous",
        ),
        (["--listen", "0.0.0.0:0", *TLS], r"^listen: .*administrator; set access\.tokens"),
        (["--http-listen", "0.0.0.0:0", "--insecure"], r"^http_listen: .*set access\.tokens"),
        (["--http-listen", "0.0.0.0:0", *TLS, "--tls-http"], r"^http_listen: .*access\.tokens"),
        (
            ["--http-listen", "0.0.0.0:0", "--insecure", *TLS, "--tls-client-ca", "ca.pem"],
            r"^http_listen: .*set access\.tokens",
        ),
        (["--tls-http"], "tls: http needs certificate and key"),
        (["--tls-certificate", "c.pem"], "tls: certificate and key belong together"),
        (["--tls-client-ca", "ca.pem"], "tls: client_ca needs certificate and key"),
        (["--grpc-max-message-mib", "0"], "grpc.max_message_mib"),
        (["--log-level", "loud"], "log.level"),
        (["--grpc-keepalive-seconds", "inf"], "grpc.keepalive_seconds: is 'inf'"),
        (["--grpc-keepalive-seconds", "1e9"], "grpc.keepalive_seconds: is '1e9'"),
        (["--grpc-max-concurrent-streams", "99999999999"], "grpc.max_concurrent_streams: is"),
        (
            ["--shutdown-keep-serving-seconds", "inf"],
            r"keep_serving_seconds: .*finite number \(from --shutdown-keep-serving-seconds\)$",
        ),
        (["--config", "/nonexistent.yaml"], "No such file"),
    ],
)
def test_invalid_values_are_named(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(arguments, {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grcp: {}", "unknown key grcp; did you mean grpc"),
        ("grpc: {max_mesage_mib: 3}", "unknown key grpc.max_mesage_mib; did you mean max_message"),
        ("grpc: 3", "grpc must contain keys"),
        ("- a", "must hold fields"),
        ("data_root: a", r"data_root: is 'a': input should be a valid list \("),
        ("data_dir: 5", r"data_dir: is 5: input is not a valid path \("),
        (
            "shutdown: {drain_seconds: .inf}",
            r"drain_seconds: is inf: must be .* \(from .*c\.yaml\)",
        ),
        ("a: [", r"c\.yaml line 1, column 5: expected the node content"),
        (
            "serving: {max_batch: 8}\nserving: {queue_items: 9}\n",
            "'serving' is set twice, first in line 1",
        ),
        (
            "serving:\n  max_batch: 8\n  max_batch: 9\n",
            "line 3.*'max_batch' is set twice, first in line 2",
        ),
        ("serving:\n  max_batch: 010\n", "line 2.*'max_batch': 010 is ambiguous"),
        ("serving:\n  max_batch: 1_6\n", "line 2.*'max_batch': 1_6 is ambiguous"),
    ],
)
def test_invalid_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        parse(["--config", str(file)], {})


def test_errors_say_where_a_value_was_given(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("serving: {max_batch: many}\n")
    with pytest.raises(ConfigError, match=rf"serving\.max_batch: is 'many'.*\(from {file}\)$"):
        parse(["--config", str(file)], {})
    variable = "MULTIGRAIN_SERVING__MAX_BATCH"
    with pytest.raises(ConfigError, match=rf"is 'few'.*\(from {variable}\)$"):
        parse(["--config", str(file)], {variable: "few"})
    with pytest.raises(ConfigError, match=r"is '0'.*\(from --serving-max-batch\)$"):
        parse(["--serving-max-batch", "0"], {variable: "few"})


def test_misspelled_variables_of_a_section_are_refused_and_those_of_others_ignored() -> None:
    with pytest.raises(ConfigError, match="did you mean MULTIGRAIN_SERVING__MAX_BATCH"):
        parse([], {"MULTIGRAIN_SERVING__MAX_BTCH": "3"})
    parse([], {"MULTIGRAIN_SERVING_PORT_50051_TCP": "tcp://10.0.0.1:50051", "A__B": "1"})


def test_reachable_address_needs_insecure_or_tls() -> None:
    assert parse(["--listen", "0.0.0.0:0", "--insecure", *TOKENS], {}).config.insecure
    assert parse(["--listen", "0.0.0.0:0", *TLS, *TOKENS], {}).config.tls.enabled
    assert ServerConfig(listen="unix:/run/m.sock").listen == "unix:/run/m.sock"
    assert ServerConfig(listen="[::1]:0").listen == "[::1]:0"


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.0.2.1", "images.example.org"])
@pytest.mark.parametrize("known", [TOKENS, [*TLS, "--tls-client-ca", "ca.pem", "--tls-http"]])
def test_reachable_addresses_need_known_callers(host: str, known: list[str]) -> None:
    addresses = ["--listen", f"{host}:50051", "--http-listen", f"{host}:9464", "--insecure"]
    parse([*addresses, *known], {})
    parse([*addresses, ANYONE], {})
    parse(addresses, {"MULTIGRAIN_ACCESS__ALLOW_ANONYMOUS": "true"})
    with pytest.raises(ConfigError, match="--access-allow-anonymous"):
        parse(addresses, {})


def test_http_listens_on_no_unix_socket() -> None:
    assert ServerConfig(http_listen="").http_listen == ""
    with pytest.raises(ValueError, match="host and a port"):
        ServerConfig(http_listen="unix:/run/m.sock")


@pytest.mark.parametrize(
    ("arguments", "warnings"),
    [
        (["--listen", "127.0.0.1:0"], []),
        (["--listen", "0.0.0.0:0", "--insecure", ANYONE], ["make any call"]),
        (["--listen", "0.0.0.0:0", "--insecure", "--access-tokens", "t"], ["unencrypted"]),
        (["--listen", "0.0.0.0:0", *TLS, ANYONE], ["make any call"]),
        (["--listen", "0.0.0.0:0", *TLS, "--tls-client-ca", "ca.pem"], []),
        (["--listen", "0.0.0.0:0", *TLS, "--access-tokens", "t"], []),
        (["--http-listen", "0.0.0.0:0", *TLS, "--tls-http", "--access-tokens", "t"], []),
        (["--http-listen", "0.0.0.0:0", "--insecure", ANYONE], ["served without TLS", "may read"]),
        (["--http-listen", "0.0.0.0:0", *TLS, "--tls-http", ANYONE], ["may read metrics"]),
        (
            ["--http-listen", "0.0.0.0:0", *TLS, "--tls-http", *TOKENS, "--access-pages", "open"],
            ["may read metrics"],
        ),
    ],
)
def test_exposed_addresses_are_warned_about(arguments: list[str], warnings: list[str]) -> None:
    found = parse(arguments, {}).config.warnings
    assert len(found) == len(warnings)
    assert all(part in text for text, part in zip(found, warnings, strict=True))

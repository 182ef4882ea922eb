"""Files that are corrupt, or that somebody wrote on purpose: refused by name, and never run."""

from __future__ import annotations

import ast
import json
import os
import pickle
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import yaml
from structlog.testing import capture_logs

import multigrain
import multigrain_client
import multigrain_server
from multigrain import strict_yaml
from multigrain.checkpoint import store
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.events.records import JobState
from multigrain.jobs.job_folder import JobFolder
from multigrain.storage import write_synced
from multigrain.weights.load import load_weights
from multigrain_server.convert.events import encode_events
from multigrain_server.convert.jobs import job_message
from multigrain_server.database import Database
from multigrain_server.jobs.recovery import index_folders
from multigrain_server.jobs.store import SCHEMA, JobStore
from multigrain_server.models.registry import ModelVersion
from multigrain_server.models.state import LoadedRow, ServingState
from tests.faults.test_power_lost import save
from tests.server.jobs.conftest import MakeServer, make_server

__all__ = ["make_server"]


MARK = f"/tmp/multigrain-was-unpickled-{os.getpid()}"


class Evil:
    """Whoever unpickles it writes a file."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (MARK,))


def was_unpickled() -> bool:
    return os.path.exists(MARK)


NONSENSE = [
    b"",
    b"\0" * 4096,
    b"\xff\xfe\x00",
    b"null",
    b"[]",
    b'"text"',
    b"1e999",
    b"{" * 50_000,
    b"[" * 50_000,
    b'{"a":' * 50_000,
    b"{}",
    pickle.dumps(Evil()),
]


def test_nothing_in_the_program_can_unpickle_or_evaluate_what_it_reads() -> None:
    found = []
    roots = [Path(str(package.__file__)).parent for package in
             (multigrain, multigrain_server, multigrain_client)]  # fmt: skip
    files = [path for root in roots for path in root.rglob("*.py")]
    assert len(files) > 200
    for path in files:
        calls = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        ]
        found += [f"{path}: {fault}" for call in calls if (fault := _fault(call))]
    assert found == []
    assert issubclass(strict_yaml._Loader, yaml.SafeLoader)


def _fault(call: ast.Call) -> str:
    name = ast.unparse(call.func)
    given = {word.arg: ast.unparse(word.value) for word in call.keywords}
    if name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False":
        return "np.load with pickles"
    if name == "torch.load" and given.get("weights_only") != "True":
        return "torch.load without weights_only"
    module = name.partition(".")[0]
    if module in ("pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"):
        return name
    if name == "yaml.load" and given.get("Loader") != "_Loader":
        return name
    if name in ("eval", "exec", "yaml.unsafe_load", "os.system", "os.popen"):
        return name
    if given.get("shell", "False") != "False":
        return f"{name} with a shell"
    return ""


@pytest.mark.parametrize(
    "name", ["spec.json", "events.jsonl", "lease.json", "runner.json", "cancel"]
)
async def test_a_damaged_job_folder_delays_no_other_job(
    make_server: MakeServer, tmp_path: Path, name: str
) -> None:
    first = make_server("cpu:1")
    good = await first.submit(request_id="good", events="3")
    await first.ended(good.job_id)
    victims = []
    for _ in NONSENSE:
        victims.append((await first.submit(mute="1")).job_id)
        first.jobs.cancel(victims[-1])
    await first.stop()
    (tmp_path / "state.db").unlink()
    for victim, content in zip(victims, NONSENSE, strict=True):
        path = tmp_path / "jobs" / victim / name
        path.write_bytes(content if name == "spec.json" or not content else content + b"\n")
    second = make_server("cpu:0")
    assert second.jobs.get(good.job_id).state is JobState.SUCCEEDED
    assert (await second.submit(request_id="good", events="3")).job_id == good.job_id
    for victim in victims:
        if name == "spec.json":
            with pytest.raises(MultigrainError) as caught:
                second.jobs.get(victim)
            assert caught.value.kind is ErrorKind.NOT_FOUND
        else:
            job_message(second.jobs.get(victim))
    assert not was_unpickled()


EVENT = {"seq": 2, "time": "2026-01-31T12:00:00.000000Z", "job_id": "x", "attempt": 1}


@pytest.mark.parametrize(
    "event",
    [
        {**EVENT, "state": {"state": "NOT_ONE"}},
        {**EVENT, "state": {"state": "RUNNING", "error": [1]}},
        {**EVENT, "state": []},
        {**EVENT, "loss": {"step": 1}},
        {**EVENT, "loss": "text"},
        {**EVENT, "novelty": {}},
        {**EVENT, "seq": "2", "state": {"state": "RUNNING"}},
        {**EVENT, "seq": 10**30, "state": {"state": "RUNNING"}},
        {**EVENT, "attempt": None, "state": {"state": "RUNNING"}},
        {"seq": 2},
    ],
    ids=lambda event: json.dumps(event)[-40:],
)
async def test_an_event_that_is_none_is_passed_over_or_streamed_as_far_as_it_goes(
    make_server: MakeServer, event: dict[str, object]
) -> None:
    server = make_server("cpu:0")
    job = await server.submit()
    path = JobFolder(server.root / "jobs" / job.job_id).events
    with path.open("ab") as file:
        file.write(json.dumps(event, separators=(",", ":")).encode() + b"\n")
    await server.stop()
    later = make_server("cpu:0")
    job_message(later.jobs.get(job.job_id))
    async for batch in later.jobs.event_feed(job.job_id).batches(0, frozenset(), False):
        encode_events(batch.lines)


def test_folders_that_lead_elsewhere_are_no_jobs(tmp_path: Path) -> None:
    for name in ("train-1", "Train 2", "..."):
        (tmp_path / "jobs" / name).mkdir(parents=True)
    body = '{"job_id": "../../etc", "kind": "EXPORT", "create_time": "now"}'
    for name in ("train-1", "Train 2", "..."):
        (tmp_path / "jobs" / name / "spec.json").write_text(body)
    with closing(Database(":memory:", [SCHEMA])) as database:
        done = index_folders(tmp_path / "jobs", JobStore(database))
    assert set(done.skipped) == {"train-1", "Train 2", "..."}
    assert "belongs to job ../../etc" in done.skipped["train-1"]


@pytest.mark.parametrize(
    "content",
    [
        *NONSENSE[1:10],
        b'{"loaded": [{"version": {"name": "../../x", "version": 1}, "runtime": ""}]}',
        b'{"loaded": [{"version": {"name": "x", "version": 1}, "runtime": "rm -rf"}]}',
        b'{"aliases": {"a/b": {"name": "x", "version": 1}}}',
        b'{"default": "../x"}',
    ],
)
def test_a_damaged_serving_state_is_moved_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "serving.json"
    path.write_bytes(content)
    with capture_logs() as lines:
        state = ServingState(path)
    assert (state.loaded(), state.aliases, state.default) == ([], {}, "")
    assert [(line["file"], line["moved_to"]) for line in lines] == [
        ("serving.json", "serving.json.damaged")
    ]
    assert (tmp_path / "serving.json.damaged").read_bytes() == content
    row = LoadedRow(version=ModelVersion("x", 1), runtime="auto")
    state.add_loaded(row)
    state.set_alias("production", row.version)
    again = ServingState(path)
    assert (again.loaded(), again.aliases) == ([row], {"production": row.version})


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "manifest.json"])
# Ids by number: the pickle differs in every process, and pytest-xdist compares the ids.
@pytest.mark.parametrize("content", NONSENSE, ids=range(len(NONSENSE)))
def test_a_checkpoint_with_nonsense_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (save(tmp_path, 1) / name).write_bytes(content)
    with pytest.raises(MultigrainError, match="step-00000001") as caught:
        store.load(tmp_path / "step-00000001")
    assert caught.value.kind is ErrorKind.CHECKPOINT
    assert store.latest_good(tmp_path) is None


def test_a_manifest_that_vouches_for_nonsense_or_for_files_elsewhere_is_refused(
    tmp_path: Path,
) -> None:
    folder = save(tmp_path, 1)
    (tmp_path / "outside").write_bytes(b"secret")
    manifest = json.loads((folder / "manifest.json").read_text())
    evil = pickle.dumps({"w": np.zeros(3)})
    (folder / "model.safetensors").unlink()
    entry = write_synced(folder / "model.safetensors", evil)
    manifest["files"]["model.safetensors"] = entry.model_dump()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MultigrainError, match=r"model\.safetensors cannot be read") as caught:
        store.load(folder)
    assert caught.value.kind is ErrorKind.CHECKPOINT
    manifest["files"]["../outside"] = {"sha256": "0" * 64, "bytes": 6}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MultigrainError, match=r"'\.\./outside' is not a plain file name"):
        store.verify(folder)


@pytest.mark.mindspore
@pytest.mark.parametrize("ending", [".safetensors", ".ckpt", ".pth", ".npy", ".pkl"])
def test_a_pickle_under_any_name_is_no_weights_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"weights{ending}"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(MultigrainError) as caught:
        load_weights(path)
    assert caught.value.kind in (ErrorKind.CHECKPOINT, ErrorKind.UNSUPPORTED)
    assert not was_unpickled()

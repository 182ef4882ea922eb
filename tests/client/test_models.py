"""Models: listing, loading, import and download."""

from __future__ import annotations

import hashlib
import tarfile

import grpc
import pytest

from multigrain.v1 import model_pb2
from multigrain_client import InvalidRequest, NotFound, ServerError
from multigrain_client.downloads import DownloadWriter
from tests.client.faults import Fault


def test_models_are_listed_loaded_and_aliased(client, state):
    for version in (1, 2, 3):
        state.models[f"fake@{version}"] = model_pb2.Model(name="fake", version=version)
    assert [model.version for model in client.models()] == [1, 2, 3]
    assert client.load_model("fake@2", make_default=True).state == model_pb2.MODEL_STATE_READY
    client.set_alias("production", "fake@2")
    assert state.requests[-1].alias == "production"
    assert client.unload_model("fake@2").state == model_pb2.MODEL_STATE_UNLOADED
    with pytest.raises(NotFound, match="no model lost@1"):
        client.model("lost@1")


def test_bundle_folder_is_uploaded_and_downloaded_unchanged(client, state, tmp_path):
    bundle = tmp_path / "bundle"
    (bundle / "graphs").mkdir(parents=True)
    manifest = '{"files": {"graphs/model.onnx": {}}}'
    (bundle / "model.json").write_text(manifest)
    (bundle / "graphs" / "model.onnx").write_bytes(b"x" * 3_000_000)
    model = client.import_model(bundle, name="digits")
    assert dict(model.files) == {"graphs/model.onnx": 3_000_000, "model.json": len(manifest)}

    path = client.download_model("digits@1", tmp_path / "digits.tar")
    assert path.read_bytes() == state.bundle
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bundle", "digits.tar"]


def test_invalid_version_is_refused_by_field_name(client, tmp_path):
    tarfile.open(tmp_path / "bundle.tar", "w").close()
    with pytest.raises(InvalidRequest, match=r"^start\.version: must be"):
        client.import_model(tmp_path / "bundle.tar", version=-1)


def test_importing_a_weights_file_suggests_an_export(client, tmp_path):
    (tmp_path / "resnet50.safetensors").write_bytes(b"x" * 3000)
    with pytest.raises(InvalidRequest, match=r"not a model bundle.*weights file, export it"):
        client.import_model(tmp_path / "resnet50.safetensors")


def test_importing_a_folder_without_a_manifest_is_refused(client, tmp_path):
    with pytest.raises(InvalidRequest, match=r"has no model\.json"):
        client.import_model(tmp_path)


@pytest.mark.parametrize(
    "extra",
    [".DS_Store", "._model.json", "__MACOSX/._model.json", "Thumbs.db", ".git/HEAD", "README.md",
     "old/model.json"],
)  # fmt: skip
def test_what_the_manifest_does_not_list_is_not_uploaded(client, tmp_path, extra):
    (tmp_path / "model.json").write_text('{"files": {"a": {}}}')
    (tmp_path / "a").write_bytes(b"aa")
    (tmp_path / extra).parent.mkdir(exist_ok=True)
    (tmp_path / extra).write_bytes(b"not for you")
    assert set(client.import_model(tmp_path).files) == {"model.json", "a"}


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        ("{", r"model\.json is not valid JSON"),
        ('{"files": {"b": {}}}', r"b is missing: model\.json lists it"),
        ('{"files": {"link": {}}}', "link is a link, which is not followed"),
        ('{"files": {"dangling": {}}}', "dangling is a link"),
        ('{"files": {"folder": {}}}', "folder is missing"),
        ('{"files": {"../a": {}}}', r"lists '\.\./a': not a file"),
        ('{"files": {"/etc/passwd": {}}}', "not a file of the folder"),
        ('{"files": {"": {}}}', "not a file of the folder"),
    ],
)
def test_a_bundle_folder_that_is_not_whole_is_refused_before_the_upload(
    client, state, tmp_path, manifest, why
):
    (tmp_path / "model.json").write_text(manifest)
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidRequest, match=why):
        client.import_model(tmp_path)
    assert state.requests == []


def test_a_folder_around_the_bundle_is_refused_with_the_bundle(client, tmp_path):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "model.json").write_text("{}")
    with pytest.raises(InvalidRequest, match=f"did you mean {tmp_path / 'digits'}?"):
        client.import_model(tmp_path)


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"\x1f\x8b\x08", r"it is a gzip file: unpack it \(gunzip\)"),
        (b"BZh9", "a bzip2 file"),
        (b"\xfd7zXZ\x00", "an xz file"),
        (b"\x28\xb5\x2f\xfd", r"a zstd file: unpack it \(unzstd\)"),
        (b"\x04\x22\x4d\x18", "an lz4 file"),
        (b"PK\x03\x04", r"a zip archive: unpack it \(unzip\) and import the tar or folder"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    ],
)
def test_a_compressed_archive_is_refused_with_how_to_unpack_it(client, state, tmp_path, head, what):
    (tmp_path / "bundle.tar").write_bytes(head + bytes(600))
    with pytest.raises(InvalidRequest, match=f"bundle.tar cannot be imported: .*{what}|{what}"):
        client.import_model(tmp_path / "bundle.tar")
    assert state.requests == []


def test_the_manifest_of_a_bundle_is_refused_with_its_folder(client, tmp_path):
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(InvalidRequest, match=f"import its folder {tmp_path}$"):
        client.import_model(tmp_path / "model.json")


def test_a_gzipped_tar_is_not_sent(client, state, tmp_path):
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as tar:
        tar.add(__file__, "model.json")
    with pytest.raises(InvalidRequest, match="it is a gzip file"):
        client.import_model(tmp_path / "b.tar.gz")
    assert state.requests == []


def test_a_download_ends_at_the_announced_size(tmp_path):
    with DownloadWriter(tmp_path / "digits.tar", "the bundle") as writer:
        writer.write(model_pb2.DownloadModelResponse(chunk=b"ab", total_bytes=3))
        with pytest.raises(ServerError, match="received more than the 3 bytes"):
            writer.write(model_pb2.DownloadModelResponse(chunk=b"cd"))
    assert list(tmp_path.iterdir()) == []


def test_interrupted_download_leaves_no_file(client, state, tmp_path):
    state.bundle = b"x" * 100
    state.faults["DownloadModel"].append(Fault(grpc.StatusCode.NOT_FOUND, "gone", "NOT_FOUND"))
    with pytest.raises(NotFound):
        client.download_model("digits@1", tmp_path / "digits.tar")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("total", "sha256", "message"),
    [
        (4, hashlib.sha256(b"abc").hexdigest(), "received 3 of 4 bytes"),
        (3, hashlib.sha256(b"abd").hexdigest(), "its SHA-256 does not match the server's"),
        (3, "", "its SHA-256 does not match the server's"),
    ],
)
def test_damaged_download_is_discarded(tmp_path, total, sha256, message):
    path = tmp_path / "digits.tar"
    path.write_bytes(b"older")
    with DownloadWriter(path, "the bundle") as writer:
        writer.write(model_pb2.DownloadModelResponse(chunk=b"abc", total_bytes=total))
        writer.write(model_pb2.DownloadModelResponse(sha256=sha256))
        with pytest.raises(ServerError, match=message):
            writer.finish()
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {
        "digits.tar": b"older"
    }

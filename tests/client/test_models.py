"""Models: listing, loading, import and download."""

from __future__ import annotations

import hashlib
import tarfile

import grpc
import pytest

from multigrain.v1 import model_pb2
from multigrain_client import InvalidRequest, NotFound, ServerError
from multigrain_client.bundles import BundleWriter
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
    (bundle / "model.json").write_text("{}")
    (bundle / "graphs" / "model.onnx").write_bytes(b"x" * 3_000_000)
    model = client.import_model(bundle, name="digits")
    assert dict(model.files) == {"graphs/model.onnx": 3_000_000, "model.json": 2}

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
    with BundleWriter(path) as writer:
        writer.write(model_pb2.DownloadModelResponse(chunk=b"abc", total_bytes=total))
        writer.write(model_pb2.DownloadModelResponse(sha256=sha256))
        with pytest.raises(ServerError, match=message):
            writer.finish()
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {
        "digits.tar": b"older"
    }

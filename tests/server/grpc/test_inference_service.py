"""The Open Inference Protocol over the wire, with real engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2

from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import preprocess
from multigrain.v1 import embedding_pb2
from multigrain.v1.inference import model_pb2 as oip
from multigrain.v1.inference import service_pb2
from multigrain.v1.model_pb2 import GetModelRequest, LoadModelRequest
from multigrain_server.config import GrpcConfig
from multigrain_server.engines.images import ImageRequest
from multigrain_server.grpc.inference import UNOFFERED
from multigrain_server.serving.pacing import Pacing
from tests.engine.bundles import CLASSES, EMBEDDING, SIZE, TinyNetwork, write_bundle
from tests.engine.held import hold
from tests.engine.pictures import picture
from tests.server.grpc.inference_messages import array, files, pixels, raw_bytes, want
from tests.server.grpc.refusal import detail, refusal, status_of
from tests.server.grpc.serving import Serving, serving
from tests.server.serving.harness import small_config, until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.process]
PICTURES = [picture(seed) for seed in range(3)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Serving]:
    """One model of two versions, the first of which is loaded, with two resolutions."""
    root = tmp_path_factory.mktemp("served")
    write_bundle(root / "models", network=TinyNetwork(seed=1), also=16, whitened=True)
    write_bundle(root / "models", version=2)
    config = small_config(max_images_per_request=8, keep_replaced_versions=True)
    async with serving(root, config, GrpcConfig(max_message_mib=1)) as made:
        await made.models.LoadModel(LoadModelRequest(model="tiny@1"))
        yield made


def _prepared(side: int = SIZE) -> np.ndarray:
    parameters = Preprocessing(size=side, resize_short=side)
    return np.stack([preprocess(data, parameters) for data in PICTURES])


@pytest.mark.process
async def test_files_get_the_networks_embedding_and_all_scores(served: Serving) -> None:
    network = TinyNetwork(seed=1)
    request = files(*PICTURES, model_name="tiny", model_version="1", id="my id")
    response = await served.inference.ModelInfer(request)
    assert (response.model_name, response.model_version, response.id) == ("tiny", "1", "my id")
    assert [output.name for output in response.outputs] == ["embedding", "scores"]
    assert [list(output.shape) for output in response.outputs] == [[3, EMBEDDING], [3, CLASSES]]
    assert not any(output.HasField("contents") for output in response.outputs)
    for image, vector, scores in zip(
        _prepared(), array(response, "embedding"), array(response, "scores"), strict=True
    ):
        expected = network.embed(image)
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), rtol=1e-4)
        powers = np.exp(network.logits(expected))
        np.testing.assert_allclose(scores, powers / powers.sum(), rtol=1e-4)


async def test_both_apis_give_the_same_numbers(served: Serving) -> None:
    theirs = await served.inference.ModelInfer(files(*PICTURES))
    ours = await served.embedding.Embed(embedding_pb2.EmbedRequest(images=PICTURES))
    assert ours.model == f"{theirs.model_name}@{theirs.model_version}"
    rows = array(theirs, "embedding")
    for row, result in zip(rows, ours.results, strict=True):
        np.testing.assert_allclose(row, np.frombuffer(result.embedding.data, "<f4"), rtol=1e-5)


@pytest.mark.parametrize("side", [SIZE, 16])
@pytest.mark.parametrize("raw", [True, False])
async def test_preprocessed_images_get_the_results_of_their_files(
    served: Serving, side: int, raw: bool
) -> None:
    asked = files(*PICTURES)
    asked.parameters["resolution"].int64_param = side
    expected = await served.inference.ModelInfer(asked)
    response = await served.inference.ModelInfer(pixels(_prepared(side), raw))
    for name in ("embedding", "scores"):
        np.testing.assert_allclose(array(response, name), array(expected, name), rtol=1e-5)


async def test_only_requested_outputs_are_returned_in_their_order(served: Serving) -> None:
    request = files(PICTURES[0], raw=False)
    want(request, "scores")
    response = await served.inference.ModelInfer(request)
    assert [output.name for output in response.outputs] == ["scores"]
    assert len(response.raw_output_contents) == 1
    request = files(PICTURES[0])
    want(request, "scores", "embedding")
    response = await served.inference.ModelInfer(request)
    assert [output.name for output in response.outputs] == ["scores", "embedding"]


async def test_a_classification_is_text_in_order_of_probability(served: Serving) -> None:
    request = files(*PICTURES)
    want(request, "scores", top=2)
    response = await served.inference.ModelInfer(request)
    scores = array(await served.inference.ModelInfer(files(*PICTURES)), "scores")
    (output,) = response.outputs
    assert (output.datatype, list(output.shape)) == ("BYTES", [3, 2])
    expected = [
        f"{row[index]:f}:{index}:label {index}".encode()
        for row in scores
        for index in np.argsort(-row)[:2]
    ]
    assert response.raw_output_contents[0] == raw_bytes(*expected)


async def test_parameters_choose_resolution_length_and_whitening(served: Serving) -> None:
    plain = files(*PICTURES)
    plain.parameters["normalize"].bool_param = False
    lengths = np.linalg.norm(array(await served.inference.ModelInfer(plain), "embedding"), axis=1)
    assert np.abs(lengths - 1).min() > 1e-3
    white = files(*PICTURES)
    white.parameters["whiten"].bool_param = True
    whitened = array(await served.inference.ModelInfer(white), "embedding")
    assert whitened.shape == (3, EMBEDDING + 1)
    np.testing.assert_allclose(np.linalg.norm(whitened, axis=1), 1, rtol=1e-5)


async def test_bad_images_fail_the_call_and_all_are_named(served: Serving) -> None:
    request = files(PICTURES[0], b"no image", b"", PICTURES[1])
    error = await refusal(served.inference.ModelInfer(request))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith("image 1 of 4: ")
    assert "1 more" in error.details()
    named = [v.field for v in detail(error, error_details_pb2.BadRequest).field_violations]
    assert named == ["inputs[0][1]", "inputs[0][2]"]


async def test_a_non_finite_preprocessed_image_is_refused(served: Serving) -> None:
    bad = _prepared()
    bad[2, 0, 0, 0] = np.inf
    error = await refusal(served.inference.ModelInfer(pixels(bad)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "non-finite" in error.details()


@pytest.mark.parametrize(
    ("fields", "code", "says"),
    [
        ({"model_name": "nothing"}, grpc.StatusCode.NOT_FOUND, "nothing"),
        ({"model_name": "tiny", "model_version": "3"}, grpc.StatusCode.NOT_FOUND, "tiny@3"),
        ({"model_name": "tiny@2"}, grpc.StatusCode.FAILED_PRECONDITION, "not loaded"),
        (
            {"model_name": "tiny", "model_version": "one"},
            grpc.StatusCode.INVALID_ARGUMENT,
            "model_version",
        ),
        ({"model_version": "1"}, grpc.StatusCode.INVALID_ARGUMENT, "model_name"),
        (
            {"model_name": "tiny@1", "model_version": "2"},
            grpc.StatusCode.INVALID_ARGUMENT,
            "tiny@1",
        ),
    ],
)
async def test_a_request_for_a_model_that_is_not_loaded_is_refused(
    served: Serving, fields: dict[str, str], code: grpc.StatusCode, says: str
) -> None:
    error = await refusal(served.inference.ModelInfer(files(PICTURES[0], **fields)))
    assert error.code() is code
    assert says in error.details()


@pytest.mark.parametrize("fault", ["size", "datatype", "model"])
async def test_a_malformed_request_counts_as_waste(
    served: Serving, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.service, "pacing", Pacing())
    client = "127.0.0.1"
    await served.inference.ModelInfer(files(PICTURES[0]))
    assert not served.service.pacing.counts(client)
    request = pixels(_prepared())
    if fault == "size":
        request.raw_input_contents[0] += bytes(4)
    elif fault == "datatype":
        request.inputs[0].datatype = "FP64"
    else:
        request.model_name = "no model has this name!"
    error = await refusal(served.inference.ModelInfer(request))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert served.service.pacing.counts(client)


async def test_a_malformed_message_of_a_stream_counts_as_waste(
    served: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.service, "pacing", Pacing())
    request = pixels(_prepared())
    request.raw_input_contents[0] += bytes(4)
    call = served.inference.ModelStreamInfer(iter([request]))
    assert [bool(response.error_message) async for response in call] == [True]
    assert served.service.pacing.counts("127.0.0.1")


async def test_a_resolution_that_the_model_lacks_is_refused(served: Serving) -> None:
    images = np.zeros((1, 3, 24, 24), np.float32)
    error = await refusal(served.inference.ModelInfer(pixels(images)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "use 32, 16" in error.details()


async def test_the_same_admission_metrics_and_request_id_as_embed(served: Serving) -> None:
    call = served.inference.ModelInfer(files(PICTURES[0]), metadata=(("x-request-id", "abc"),))
    await call
    assert dict(await call.trailing_metadata())["x-request-id"] == "abc"
    rpc = {"rpc": "GRPCInferenceService/ModelInfer", "code": "OK"}
    assert served.harness.metric("multigrain_requests_total", **rpc) >= 1
    admission = served.service.admission
    engine = served.manager.catalog.route("").engine
    full = ImageRequest("", [b""] * served.harness.config.queue_items)
    with admission.admit(full, engine):
        error = await refusal(served.inference.ModelInfer(files(PICTURES[0])))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
    assert admission.items == 0


@pytest.mark.parametrize("own", [True, False])
async def test_images_are_dropped_at_the_deadline_or_the_timeout_parameter(
    served: Serving, own: bool
) -> None:
    engine = served.manager.catalog.route("tiny@1").engine
    hold(engine, 100)
    request = files(PICTURES[0])
    if own:
        request.parameters["timeout"].int64_param = 50_000
    call = served.inference.ModelInfer(request, timeout=None if own else 0.05)
    error = await (refusal if own else status_of)(call)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    hold(engine, 0)
    await until(lambda: engine.in_flight == 0)


async def test_a_message_that_grows_when_decompressed_is_refused(served: Serving) -> None:
    request = files(bytes(8 << 20))
    call = served.inference.ModelInfer(request, compression=grpc.Compression.Gzip)
    assert (await status_of(call)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await served.inference.ModelInfer(files(PICTURES[0]), compression=grpc.Compression.Gzip)


async def test_metadata_and_configuration_describe_the_tensors(served: Serving) -> None:
    server = await served.inference.ServerMetadata(service_pb2.ServerMetadataRequest())
    assert server.name == "multigrain"
    assert not {"system_shared_memory", "trace", "logging"} & set(server.extensions)
    request = service_pb2.ModelMetadataRequest(name="tiny")
    metadata = await served.inference.ModelMetadata(request)
    assert (metadata.name, list(metadata.versions)) == ("tiny", ["1", "2"])
    assert [(i.name, i.datatype, list(i.shape)) for i in metadata.inputs] == [
        ("images", "BYTES", [-1, 1]),
        ("pixels", "FP32", [-1, 3, -1, -1]),  # it has two resolutions
    ]
    assert [(o.name, o.datatype, list(o.shape)) for o in metadata.outputs] == [
        ("embedding", "FP32", [-1, -1]),  # whitened ones have another size
        ("scores", "FP32", [-1, CLASSES]),
    ]
    request = service_pb2.ModelMetadataRequest(name="tiny", version="2")
    metadata = await served.inference.ModelMetadata(request)
    assert list(metadata.inputs[1].shape) == [-1, 3, SIZE, SIZE]
    assert list(metadata.outputs[0].shape) == [-1, EMBEDDING]
    config = (await served.inference.ModelConfig(oip.ModelConfigRequest(name="tiny"))).config
    assert (config.name, config.max_batch_size) == ("tiny", 8)
    assert list(config.version_policy.specific.versions) == [1]
    model = await served.models.GetModel(GetModelRequest(model="tiny@1"))
    assert config.backend == model.runtime != ""
    assert [(i.name, i.data_type, list(i.dims), i.optional) for i in config.input] == [
        ("images", oip.TYPE_STRING, [1], True),
        ("pixels", oip.TYPE_FP32, [3, -1, -1], True),
    ]
    assert config.input[1].format == oip.ModelInput.FORMAT_NCHW
    assert [(o.name, list(o.dims)) for o in config.output] == [
        ("embedding", [-1]),
        ("scores", [CLASSES]),
    ]
    assert config.parameters["gem_p_16"].string_value == "3"
    assert config.parameters["whitened_size_32"].string_value == str(EMBEDDING + 1)


async def test_statistics_count_requests_images_and_passes(served: Serving) -> None:
    async def now() -> oip.ModelStatistics:
        (only,) = (
            await served.inference.ModelStatistics(oip.ModelStatisticsRequest(name="tiny"))
        ).model_stats
        return only

    before = await now()
    hold(served.manager.catalog.route("tiny@1").engine, 3)
    await served.inference.ModelInfer(files(*PICTURES))
    await refusal(served.inference.ModelInfer(pixels(np.zeros((1, 3, 8, 8), np.float32))))
    after = await now()
    assert (after.name, after.version) == ("tiny", "1")
    assert after.inference_count - before.inference_count == 3
    assert after.execution_count - before.execution_count == 1
    stats, earlier = after.inference_stats, before.inference_stats
    assert stats.fail.count - earlier.fail.count == 1
    for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert getattr(stats, name).count - getattr(earlier, name).count == 1
    assert stats.success.ns - earlier.success.ns > stats.compute_infer.ns - earlier.compute_infer.ns
    sizes = {batch.batch_size: batch.compute_infer.count for batch in after.batch_stats}
    assert sizes[3] >= 1
    assert sum(sizes.values()) == after.execution_count
    error = await refusal(
        served.inference.ModelStatistics(oip.ModelStatisticsRequest(name="tiny", version="2"))
    )
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize("name", UNOFFERED)
async def test_calls_that_are_not_offered_are_unimplemented(served: Serving, name: str) -> None:
    call = served.channel.unary_unary(f"/inference.GRPCInferenceService/{name}")
    error = await refusal(call(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert error.details() == UNOFFERED[name]
    assert dict(error.trailing_metadata())["x-request-id"]


async def test_a_canceled_caller_leaves_nothing_behind(served: Serving) -> None:
    engine = served.manager.catalog.route("tiny@1").engine
    hold(engine, 100)
    call = served.inference.ModelInfer(files(*PICTURES))
    await until(lambda: engine.in_flight == 3)
    call.cancel()
    await until(lambda: engine.in_flight == 0 and served.service.admission.items == 0)
    hold(engine, 0)
    await asyncio.wait_for(served.inference.ModelInfer(files(PICTURES[0])), 60)

"""ModelStreamInfer in Triton's form."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest
import pytest_asyncio

from multigrain.v1.inference import service_pb2
from tests.engine.bundles import write_bundle
from tests.engine.held import hold
from tests.engine.pictures import picture
from tests.server.grpc.inference_messages import array, files, want
from tests.server.grpc.refusal import status_of
from tests.server.grpc.serving import Serving, serving
from tests.server.serving.harness import small_config, until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.process]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Serving]:
    root = tmp_path_factory.mktemp("served")
    write_bundle(root / "models")
    async with serving(root, small_config(stream_window=4)) as made:
        await made.manager.load("tiny")
        yield made


def _requests() -> list[service_pb2.ModelInferRequest]:
    """The second is no request, the fourth no image, the fifth for no model."""
    wrong = files(picture(1), id="1")
    wrong.inputs[0].datatype = "FP64"
    return [
        files(picture(0), id="0"),
        wrong,
        files(picture(2), picture(3), id="2"),
        files(b"no image", id="3"),
        files(picture(4), id="4", model_name="nothing", model_version="9"),
        files(picture(5), id="5"),
    ]


@pytest.mark.process
async def test_every_request_is_answered_in_order_and_errors_do_not_end_the_stream(
    served: Serving,
) -> None:
    call = served.inference.ModelStreamInfer(iter(_requests()))
    answers = [answer async for answer in call]
    assert [answer.infer_response.id for answer in answers] == list("012345")
    says = ["", "'FP64'", "", "not an image", "no model nothing@9", ""]
    for answer, part in zip(answers, says, strict=True):
        assert bool(answer.error_message) == bool(part)
        assert part in answer.error_message
        assert answer.infer_response.parameters["triton_final_response"].bool_param
    assert answers[4].infer_response.model_name == "nothing"
    alone = await served.inference.ModelInfer(files(picture(2), picture(3)))
    np.testing.assert_allclose(
        array(answers[2].infer_response, "embedding"), array(alone, "embedding"), rtol=1e-5
    )
    assert await call.code() is grpc.StatusCode.OK


async def test_with_the_header_of_tritons_clients_the_first_error_ends_the_stream(
    served: Serving,
) -> None:
    call = served.inference.ModelStreamInfer(
        iter(_requests()), metadata=(("triton_grpc_error", "true"),)
    )
    assert (await call.read()).infer_response.id == "0"
    error = await status_of(call.read())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "FP64" in error.details()


async def test_a_stream_is_read_no_faster_than_it_is_answered(served: Serving) -> None:
    engine = served.manager.catalog.route("").engine
    await until(lambda: engine.in_flight == 0)  # of other tests
    hold(engine, 1000)
    sent = 0

    async def requests() -> AsyncIterator[service_pb2.ModelInferRequest]:
        nonlocal sent
        for number in range(100):
            sent += 1
            request = files(picture(number % 5), id=str(number))
            want(request, "scores")
            yield request

    call = served.inference.ModelStreamInfer(requests())
    await until(lambda: engine.in_flight == 4)
    assert served.service.admission.items == 4
    hold(engine, 0)
    assert [a.infer_response.id async for a in call] == [str(n) for n in range(100)]
    assert sent == 100


async def test_a_canceled_stream_leaves_nothing_behind(served: Serving) -> None:
    engine = served.manager.catalog.route("").engine
    hold(engine, 1000)
    call = served.inference.ModelStreamInfer(files(picture(n)) for n in range(10))
    await until(lambda: engine.in_flight == 4)
    call.cancel()
    await until(lambda: engine.in_flight == 0 and served.service.admission.items == 0)
    hold(engine, 0)

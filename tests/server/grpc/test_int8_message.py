"""What GetModel says about 8-bit graphs."""

from __future__ import annotations

from multigrain.bundle.manifest import GraphScores, Head, Int8Entry, VectorLoss, VectorScores
from multigrain.images.parameters import Preprocessing
from multigrain_server.grpc.models import _resolution


def head(**fields: object) -> Head:
    return Head(resolution=32, gem_p=3.0, preprocessing=Preprocessing.standard(32), **fields)


def test_the_measurements_of_an_8_bit_graph_are_sent() -> None:
    entry = Int8Entry(
        file="q.xml",
        calibration_images=128,
        images=256,
        held_out="validation",
        cosine_mean=0.998,
        cosine_p1=0.99,
        cosine_min=0.97,
        same_top1=0.95,
        labelled_images=200,
        f32=GraphScores(top1=0.8, top5=0.9),
        int8=GraphScores(top1=0.79, top5=0.9),
        f32_search=VectorScores(copy_map=0.7, object_map=0.6),
        int8_search=VectorScores(copy_map=0.69),
        whitened=VectorLoss(cosine_mean=0.9, cosine_min=0.5),
    )
    sent = _resolution(head(int8=entry)).int8
    assert (sent.calibration_images, sent.images, sent.held_out) == (128, 256, "validation")
    assert (sent.same_top1, sent.f32_top1, sent.int8_top1) == (0.95, 0.8, 0.79)
    vectors = sent.vectors
    assert (vectors.cosine_mean, vectors.cosine_p1, vectors.cosine_min) == (0.998, 0.99, 0.97)
    assert (vectors.f32_copy_map, vectors.int8_copy_map, vectors.f32_object_map) == (0.7, 0.69, 0.6)
    assert not vectors.HasField("int8_object_map")
    assert sent.whitened.cosine_mean == 0.9
    assert not sent.whitened.HasField("f32_copy_map")


def test_a_left_out_graph_is_sent_with_the_reason() -> None:
    sent = _resolution(head(no_int8="a loss of 0.2 in top-1"))
    assert not sent.HasField("int8")
    assert sent.no_int8 == "a loss of 0.2 in top-1"
    plain = Int8Entry(
        file="q.xml", calibration_images=1, images=1, cosine_mean=1, cosine_min=1, same_top1=1
    )
    graph = _resolution(head(int8=plain)).int8
    assert not graph.HasField("whitened")
    assert not graph.HasField("f32_top1")

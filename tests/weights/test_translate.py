"""Translating weights from other naming schemes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.model.layouts import LAYOUTS, Shape, trunk_shapes
from multigrain.weights.names import INCOMPATIBLE_NETWORKS, PUBLISHED, TIMM, TORCHVISION, Scheme
from multigrain.weights.translate import SCHEMES, translate
from tests.peers.names import pytorch_shapes

State = dict[str, NDArray[np.generic]]
PLAIN = [trunk for trunk, layout in LAYOUTS.items() if not layout.squeeze]
PAIRS = [
    *((TORCHVISION, trunk) for trunk in PLAIN),
    *((PUBLISHED, trunk) for trunk in PLAIN),
    *((TIMM, trunk) for trunk in LAYOUTS),
]
IDS = [f"{scheme.name}-{trunk}" for scheme, trunk in PAIRS]


def theirs(scheme: Scheme, trunk: str, classes: int = 3) -> dict[str, Shape]:
    """The other program's names and shapes, from an independent list."""
    prefix = "features." if scheme is PUBLISHED else ""
    head = "classifier" if scheme is PUBLISHED else "fc"
    shapes = pytorch_shapes(trunk, classes, prefix=prefix, head=head)
    return shapes | ({"pool.p": ()} if scheme is PUBLISHED else {})


def state(shapes: dict[str, Shape]) -> State:
    """A state with a different value in every tensor."""
    return {
        name: np.full(shape, number, np.float32) for number, (name, shape) in
        enumerate(shapes.items(), 1)
    }  # fmt: skip


@pytest.mark.parametrize(("scheme", "trunk"), PAIRS, ids=IDS)
def test_every_parameter_is_mapped_exactly_once(scheme: Scheme, trunk: str) -> None:
    names = theirs(scheme, trunk)
    parameters = [name for name in names if not scheme.ignores(name)]
    for name in names:
        lines = [rule for rule in scheme.rules if rule.source.match(name) is not None]
        assert len(lines) == (0 if scheme.ignores(name) else 1), name
    mapped = Counter(found[0] for name in parameters if (found := scheme.to_native(name)))
    assert set(mapped.values()) == {1}
    head = {"classifier.weight", "classifier.bias"} | ({"pool.p"} & names.keys())
    assert mapped.keys() == trunk_shapes(trunk).keys() | head
    for name in parameters:
        found = scheme.to_native(name)
        assert found is not None
        assert scheme.to_source(found[0]) == name


@pytest.mark.parametrize("scheme", SCHEMES, ids=[s.name for s in SCHEMES])
def test_rules_are_unambiguous_and_all_used(scheme: Scheme) -> None:
    assert len({rule.source.text for rule in scheme.rules}) == len(scheme.rules)
    assert len({rule.native.text for rule in scheme.rules}) == len(scheme.rules)
    names = [name for other, trunk in PAIRS if other is scheme for name in theirs(scheme, trunk)]
    for template in (*(rule.source for rule in scheme.rules), *scheme.ignored):
        assert any(template.match(name) is not None for name in names), template.text


@pytest.mark.parametrize(("scheme", "trunk"), PAIRS, ids=IDS)
def test_a_complete_state_is_recognized_and_keeps_its_values(scheme: Scheme, trunk: str) -> None:
    given = state(theirs(scheme, trunk))
    found = translate(given, "w.safetensors")
    assert (found.trunk, found.stem, found.classes) == (trunk, "imagenet", 3)
    # timm's plain ResNets have torchvision's names.
    assert found.naming == (TORCHVISION.name if scheme is TIMM and trunk in PLAIN else scheme.name)
    assert {n: a.shape for n, a in found.model.items() if n.startswith("trunk.")} == trunk_shapes(
        trunk
    )
    for name, array in given.items():
        line = scheme.to_native(name)
        if line is not None:
            values = found.model[line[0]]
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values.ravel(), array.ravel(), err_msg=name)
    assert found.gem_p == (given["pool.p"] if scheme is PUBLISHED else 1.0)


def test_convolutional_se_gates_become_dense_layers() -> None:
    given = state(theirs(TIMM, "se_resnet50"))
    shape = (16, 256, 1, 1)
    given["layer1.0.se.fc1.weight"] = np.arange(16 * 256, dtype=np.float16).reshape(shape)
    found = translate(given, "w").model["trunk.layer1.0.se.fc1.weight"]
    np.testing.assert_array_equal(found, np.arange(16 * 256, dtype=np.float16).reshape(16, 256))


def test_the_dataparallel_prefix_is_removed() -> None:
    given = {f"module.{n}": a for n, a in state(theirs(TORCHVISION, "resnet18")).items()}
    assert translate(given, "w").trunk == "resnet18"


def test_a_trunk_without_classifier_is_accepted() -> None:
    given = state(theirs(TORCHVISION, "resnet18"))
    del given["fc.weight"], given["fc.bias"]
    found = translate(given, "w")
    assert found.classes == 0
    assert not any(name.startswith("classifier.") for name in found.model)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"layer2.1.bn2.running_var": None}, "missing: layer2.1.bn2.running_var)"),
        ({"layer2.9.conv1.weight": (64,)}, "unknown: layer2.9.conv1.weight)"),
        ({"layer1.0.attn.q": (4,)}, "unknown: layer1.0.attn.q)"),
        (
            {"layer1.0.conv2.weight": (64, 4, 3, 3)},
            "wrong shape: layer1.0.conv2.weight is (64, 4, 3, 3), expected (64, 64, 3, 3))",
        ),
        ({"fc.bias": None}, "its classifier lacks the weight or the bias"),
    ],
)
def test_mismatches_are_reported_by_the_sources_names(
    change: dict[str, Shape | None], part: str
) -> None:
    shapes: dict[str, Shape | None] = {**theirs(TORCHVISION, "resnet18"), **change}
    given = state({name: shape for name, shape in shapes.items() if shape is not None})
    with pytest.raises(MultigrainError) as caught:
        translate(given, "w.safetensors")
    assert caught.value.kind is ErrorKind.CHECKPOINT
    assert part in caught.value.message
    assert "w.safetensors" in caught.value.message


@pytest.mark.parametrize("name", INCOMPATIBLE_NETWORKS)
def test_incompatible_variants_are_refused_with_the_reason(name: str) -> None:
    given = state(theirs(TORCHVISION, "resnet18") | {name: (1,)})
    with pytest.raises(MultigrainError) as caught:
        translate(given, "w")
    assert INCOMPATIBLE_NETWORKS[name] in caught.value.message


@pytest.mark.parametrize("words", ["module.", "model.", "_orig_mod.", "net.backbone."])
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_a_prefix_of_all_names_is_removed(words: str, scheme: Scheme) -> None:
    trunk = "se_resnet50" if scheme is TIMM else "resnet18"
    plain = state(theirs(scheme, trunk))
    found = translate({words + name: array for name, array in plain.items()}, "w")
    assert (found.trunk, found.naming) == (trunk, scheme.name)
    assert found.model.keys() == translate(plain, "w").model.keys()


def test_a_prefix_of_some_names_is_kept() -> None:
    given = state(theirs(TORCHVISION, "resnet18"))
    given["model.conv1.weight"] = given.pop("conv1.weight")
    with pytest.raises(MultigrainError, match=r"unknown: model\.conv1\.weight; missing: conv1"):
        translate(given, "w")


def test_reported_names_are_sorted() -> None:
    given = state(theirs(TORCHVISION, "resnet18")) | {f"x{i}": np.zeros(1) for i in (3, 1, 2)}
    with pytest.raises(MultigrainError, match=r"unknown: x1, x2, x3\)"):
        translate(given, "w")


def test_a_file_without_tensors_is_refused() -> None:
    with pytest.raises(MultigrainError, match="it has no tensors"):
        translate({}, "w")


def test_names_of_no_known_scheme_are_reported() -> None:
    names = ("encoder.0.bias", "encoder.0.weight")
    with pytest.raises(MultigrainError) as caught:
        translate({name: np.zeros(1) for name in names}, "w")
    assert ", ".join(names) in caught.value.message
    assert "torchvision, timm, MultiGrain (published)" in caught.value.message

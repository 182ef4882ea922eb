"""Names of weights."""

from __future__ import annotations

import pytest

from multigrain.errors import MultigrainError
from multigrain.specs.weights_reference import WeightsReference, parse_reference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("job:train-1", WeightsReference("job", "train-1", "last")),
        ("job:train-1@best", WeightsReference("job", "train-1", "best")),
        ("job:train-1@1200", WeightsReference("job", "train-1", "1200")),
        ("model:birds@2", WeightsReference("model", "birds@2")),
        ("model:production", WeightsReference("model", "production")),
        ("timm:resnet50.a1_in1k", WeightsReference("timm", "resnet50.a1_in1k")),
        ("torchvision:resnet18", WeightsReference("torchvision", "resnet18")),
        ("/data/job:1/w.pth", None),
        ("/data/timm:resnet50", None),
        ("weights.pth", None),
        ("C:/weights.pth", None),
        ("", None),
    ],
)
def test_a_name_is_told_from_a_path(text: str, expected: WeightsReference | None) -> None:
    found = parse_reference(text, "field")
    assert found == expected
    if found is not None:
        assert parse_reference(str(found), "field") == found


@pytest.mark.parametrize(
    ("text", "trunk"),
    [
        ("timm:seresnet50.ra2_in1k", "se_resnet50"),
        ("timm:resnet34", "resnet34"),
        ("torchvision:resnet152", "resnet152"),
        ("job:train-1", ""),
    ],
)
def test_the_trunk_of_a_librarys_model(text: str, trunk: str) -> None:
    found = parse_reference(text, "field")
    assert found is not None
    assert found.trunk == trunk


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("job:", "a name is missing, as in job:ID@best"),
        ("timm:", "a name is missing, as in timm:resnet50"),
        ("timm:vit_base", "of timm the networks resnet18"),
        ("timm:resnet5O", "did you mean 'timm:resnet50'?"),
        ("torchvision:seresnet50", "can be used"),
        ("timm:resnet50.../../x", "can be used"),
        ("timm:resnet50\n", "can be used"),
    ],
)
def test_what_cannot_be_used_is_refused(text: str, words: str) -> None:
    with pytest.raises(MultigrainError) as caught:
        parse_reference(text, "spec.initial_weights")
    assert words in caught.value.message
    assert caught.value.violations[0].field == "spec.initial_weights"

"""Names of weights: a job's, a model's, or those of a library, beside paths.

``job:ID``, ``job:ID@best``, ``job:ID@1200``, ``model:NAME@VERSION``, ``timm:NAME`` and
``torchvision:NAME``. Everything else is a path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, cast

from multigrain.errors import MultigrainError
from multigrain.specs.violations import nearest

Kind = Literal["job", "model", "timm", "torchvision"]

#: Libraries that fetch pretrained weights.
HUBS: Final = ("timm", "torchvision")
_PATTERN: Final = re.compile(r"(job|model|timm|torchvision):(.*)", re.DOTALL)
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9_]{1,64}(\.[A-Za-z0-9_]{1,64})?")
# A model of a library -> the trunk that it is.
_TRUNKS: Final[dict[str, dict[str, str]]] = {
    "torchvision": {
        name: name for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
    },
    "timm": {
        **{name: name for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")},
        "seresnet50": "se_resnet50",
    },
}


@dataclass(frozen=True)
class WeightsReference:
    """Weights that are named, not given as a path.

    Args:
        kind: what names them.
        name: id of the job, reference of the model, or name in the library.
        checkpoint: of a job: "last", "best" or a step.
    """

    kind: Kind
    name: str
    checkpoint: str = "last"

    def __str__(self) -> str:
        checkpoint = f"@{self.checkpoint}" if self.kind == "job" else ""
        return f"{self.kind}:{self.name}{checkpoint}"

    @property
    def trunk(self) -> str:
        """The trunk of a library's model; "" for a job or a model."""
        return _TRUNKS.get(self.kind, {}).get(self.name.partition(".")[0], "")

    @property
    def file_name(self) -> str:
        """Name of the file that a library's weights are written to."""
        return f"{self.kind}-{self.name}.safetensors"


def parse_reference(text: str, field: str) -> WeightsReference | None:
    """Parses the name of weights; None for a path.

    Args:
        text: the value of ``field``.
        field: for messages.

    Raises:
        MultigrainError: INVALID_FIELD, for an empty name, or a library's model that is no trunk of
            this package.
    """
    found = _PATTERN.fullmatch(text)
    if found is None:
        return None
    kind, name = cast("Kind", found[1]), found[2]
    if not name:
        example = {"job": "job:ID@best", "model": "model:NAME@VERSION"}.get(
            kind, f"{kind}:resnet50"
        )
        raise MultigrainError.field(field, f"is {text!r}: a name is missing, as in {example}")
    if kind == "job":
        job_id, _, checkpoint = name.partition("@")
        return WeightsReference(kind, job_id, checkpoint or "last")
    reference = WeightsReference(kind, name)
    if kind in HUBS and (not reference.trunk or not _HUB_NAME.fullmatch(name)):
        names = tuple(_TRUNKS[kind])
        guess = nearest(name, names)
        hint = f"; did you mean '{kind}:{guess}'?" if guess else ""
        raise MultigrainError.field(
            field,
            f"is '{text[:80]}', but of {kind} the networks {', '.join(names)} can be used{hint}",
        )
    return reference

"""``model.json``: what a model bundle is, in one file."""

from __future__ import annotations

from pydantic import Field

from multigrain.images.parameters import Preprocessing
from multigrain.specs.base import Spec
from multigrain.specs.export import NAME_PATTERN
from multigrain.specs.training import ModelSpec
from multigrain.storage import FileEntry

MANIFEST_NAME = "model.json"


class Source(Spec):
    """Where the weights come from; all empty for a bundle made elsewhere."""

    job_id: str = ""
    step: int = 0
    checkpoint: str = ""


class WhiteningEntry(Spec):
    """A head's whitening: the safetensors file (see ``multigrain.whitening``), the numbers
    in a whitened vector, and the images it was fitted to."""

    file: str
    size: int = Field(ge=1)
    images: int = Field(0, ge=0)


class GraphScores(Spec):
    """Shares of labelled images whose class is the first, or among the first five."""

    top1: float
    top5: float


class Int8Entry(Spec):
    """A head's quantised graph (OpenVINO's .xml, its weights in the .bin beside it), and how it
    does beside the float32 graph on ``images`` that it was not calibrated with.

    ``same_top1`` is the share of them that both give the same class; ``f32`` and ``int8`` are
    scored where the images lie in folders named as the model's labels.
    """

    file: str = Field(pattern=r"\.xml$")
    calibration_images: int = Field(ge=1)
    images: int = Field(ge=0)
    cosine_mean: float
    cosine_min: float
    same_top1: float
    labelled_images: int = 0
    f32: GraphScores | None = None
    int8: GraphScores | None = None

    @property
    def files(self) -> tuple[str, str]:
        return self.file, f"{self.file.removesuffix('.xml')}.bin"


class Head(Spec):
    """One resolution the bundle serves, with its files (names in ``BundleManifest.files``).

    A whitening belongs to these weights at this resolution and exponent, and to no other.
    """

    resolution: int
    gem_p: float
    preprocessing: Preprocessing
    mindir: str = ""
    onnx: str = ""
    air: str = ""
    whitening: WhiteningEntry | None = None
    #: Test images and the network's own outputs, see ``multigrain.bundle.reference``.
    reference: str = ""
    int8: Int8Entry | None = None

    @property
    def named_files(self) -> tuple[str, ...]:
        """The files of the bundle that this head names."""
        whitening = self.whitening.file if self.whitening is not None else ""
        quantised = self.int8.files if self.int8 is not None else ()
        names = (self.mindir, self.onnx, self.air, whitening, self.reference, *quantised)
        return tuple(name for name in names if name)


class BundleManifest(Spec):
    """Content of ``model.json``.

    A graph takes ``images`` float32 (N, 3, size, size) and returns ``embedding`` float32 (N, C),
    *not* normalised, and ``logits`` float32 (N, classes). ``weights`` names the safetensors file
    with parameters by MindSpore name. ``heads[0]`` is the default resolution. ``export_job`` is
    the job that wrote it, by which that job finds its own bundle again.
    """

    format_version: int = 1
    name: str = Field(pattern=NAME_PATTERN)
    version: int = Field(ge=1)
    create_time: str = ""
    multigrain_version: str = ""
    model: ModelSpec
    embedding_size: int
    labels: tuple[str, ...] = ()
    weights: str = "weights.safetensors"
    heads: tuple[Head, ...] = Field(min_length=1)
    files: dict[str, FileEntry] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    source: Source = Source()
    export_job: str = ""

    @property
    def classes(self) -> int:
        """Outputs of the classifier, which may be more than the labels (ImageNet with 1001)."""
        return self.model.classes or len(self.labels)

    def head(self, resolution: int) -> Head:
        """The head that serves ``resolution``; 0 = the default one. Raises KeyError."""
        for head in self.heads:
            if resolution in (0, head.resolution):
                return head
        raise KeyError(resolution)

"""``model.json``, the manifest of a model bundle."""

from __future__ import annotations

from pydantic import Field

from multigrain.images.parameters import Preprocessing
from multigrain.specs.base import Spec
from multigrain.specs.export import NAME_PATTERN
from multigrain.specs.training import ModelSpec
from multigrain.storage import FileEntry

MANIFEST_NAME = "model.json"


class Source(Spec):
    """Where the weights come from; empty for a bundle that no job of this server exported."""

    job_id: str = ""
    step: int = 0
    checkpoint: str = ""


class WhiteningEntry(Spec):
    """Whitening of a resolution head.

    Attributes:
        file: safetensors file, see ``multigrain.whitening``.
        size: numbers in a whitened vector.
        images: number of images that it was fitted to.
    """

    file: str
    size: int = Field(ge=1)
    images: int = Field(0, ge=0)


class GraphScores(Spec):
    """Top-1 and top-5 accuracy on labeled images, from 0 to 1."""

    top1: float
    top5: float


class Int8Entry(Spec):
    """Quantized graph of a resolution head, and how it compares with the float32 graph.

    Attributes:
        file: OpenVINO's .xml; the weights are in a .bin file of the same name.
        calibration_images: number of images that it was calibrated with.
        images: number of other images, by which the two graphs are compared.
        cosine_mean: mean cosine of the two embeddings of an image.
        cosine_min: smallest cosine.
        same_top1: share of the images for which both graphs have the same top class.
        labelled_images: those in folders named as the model's labels.
        f32: accuracy of the float32 graph on these.
        int8: accuracy of the quantized graph on these.
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
        """The graph and its weights."""
        return self.file, f"{self.file.removesuffix('.xml')}.bin"


class Head(Spec):
    """Resolution head: a resolution that the bundle serves, and its files.

    A whitening is valid only for these weights at this resolution and GeM exponent.
    """

    resolution: int
    gem_p: float
    preprocessing: Preprocessing
    mindir: str = ""
    onnx: str = ""
    air: str = ""
    whitening: WhiteningEntry | None = None
    #: Reference images and outputs, see ``multigrain.bundle.reference``.
    reference: str = ""
    int8: Int8Entry | None = None

    @property
    def named_files(self) -> tuple[str, ...]:
        """Names of the head's files, which are in ``BundleManifest.files``."""
        whitening = self.whitening.file if self.whitening is not None else ""
        quantized = self.int8.files if self.int8 is not None else ()
        names = (self.mindir, self.onnx, self.air, whitening, self.reference, *quantized)
        return tuple(name for name in names if name)


class BundleManifest(Spec):
    """Content of ``model.json``.

    A graph takes ``images`` float32 (N, 3, size, size) and returns ``embedding`` float32 (N, C),
    *not* normalized, and ``logits`` float32 (N, classes). ``weights`` is the safetensors file, with
    MindSpore's parameter names. ``heads[0]`` is the default resolution. ``export_job`` is the job
    that wrote the bundle; when it is restarted it recognizes its bundle by it.
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
        """The head of a resolution; 0 = the default one. Raises KeyError."""
        for head in self.heads:
            if resolution in (0, head.resolution):
                return head
        raise KeyError(resolution)

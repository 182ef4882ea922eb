"""``model.json``, the manifest of a model bundle."""

from __future__ import annotations

from pydantic import Field

from multigrain.images.parameters import Preprocessing
from multigrain.manifests import (
    MAX_LABELS,
    Count,
    FileName,
    Labels,
    Long,
    Metrics,
    Text,
    parse_manifest,
)
from multigrain.specs.base import Spec
from multigrain.specs.export import NAME_PATTERN
from multigrain.specs.training import ModelSpec
from multigrain.storage import FileEntry

MANIFEST_NAME = "model.json"
#: Most files of a bundle, with the manifest.
MAX_FILES = 64
_MAX_EMBEDDING = 65_536
_MAX_RESOLUTION = 4096  # as ExportSpec.resolution
_MAX_HEADS = 16


class Source(Spec):
    """Where the weights come from; empty for a bundle that no job of this server exported."""

    job_id: Text = ""
    step: Long = 0
    checkpoint: Text = ""


class WhiteningEntry(Spec):
    """Whitening of a resolution head.

    Attributes:
        file: safetensors file, see ``multigrain.whitening``.
        size: numbers in a whitened vector.
        images: number of images that it was fitted to.
    """

    file: FileName
    size: int = Field(ge=1, le=_MAX_EMBEDDING + 1)
    images: Count = 0


class GraphScores(Spec):
    """Top-1 and top-5 accuracy on labeled images, from 0 to 1."""

    top1: float = Field(ge=0, le=1)
    top5: float = Field(ge=0, le=1)


class VectorScores(Spec):
    """Mean average precision of the searches with a graph's vectors, from 0 to 1.

    Attributes:
        copy_map: of distorted copies that should find their originals.
        object_map: of images that should find the others of their class folder; None without
            class folders.
    """

    copy_map: float = Field(ge=0, le=1)
    object_map: float | None = Field(None, ge=0, le=1)


class VectorLoss(Spec):
    """How the vectors of a quantized graph differ from those of the float32 graph.

    Attributes:
        cosine_mean: mean cosine of the two vectors of an image.
        cosine_p1: first percentile of the cosines: 99 % of the images have at least this.
        cosine_min: smallest cosine.
        f32_search: searches with the vectors of the float32 graph; None = not measured.
        int8_search: the same searches with those of the quantized graph.
    """

    cosine_mean: float
    cosine_p1: float = 0.0
    cosine_min: float
    f32_search: VectorScores | None = None
    int8_search: VectorScores | None = None


class Int8Entry(VectorLoss):
    """Quantized graph of a resolution head, and how it compares with the float32 graph.

    Attributes:
        file: OpenVINO's .xml; the weights are in a .bin file of the same name.
        calibration_images: number of images that it was calibrated with.
        images: number of other images, by which the two graphs are compared.
        held_out: where those come from: the training run's "validation" or "training" images, or
            the folder "int8_path".
        same_top1: share of the images for which both graphs have the same top class.
        labelled_images: those in folders named as the model's labels.
        f32: accuracy of the float32 graph on these.
        int8: accuracy of the quantized graph on these.
        whitened: the comparison of the whitened vectors; None without a whitening.
        reference_cosine: smallest cosine with the reference outputs, on the machine that exported
            the graph; 0 = not known.
    """

    file: FileName = Field(pattern=r"\.xml$")
    calibration_images: int = Field(ge=1, le=2**31 - 1)
    images: Count
    held_out: Text = ""
    same_top1: float
    labelled_images: Count = 0
    f32: GraphScores | None = None
    int8: GraphScores | None = None
    whitened: VectorLoss | None = None
    reference_cosine: float = Field(0.0, ge=0, le=1.001)

    @property
    def files(self) -> tuple[str, str]:
        """The graph and its weights."""
        return self.file, f"{self.file.removesuffix('.xml')}.bin"


class Head(Spec):
    """Resolution head: a resolution that the bundle serves, and its files.

    A whitening is valid only for these weights at this resolution and GeM exponent.
    """

    resolution: int = Field(ge=1, le=_MAX_RESOLUTION)
    gem_p: float = Field(gt=0)
    preprocessing: Preprocessing
    mindir: FileName = ""
    onnx: FileName = ""
    air: FileName = ""
    whitening: WhiteningEntry | None = None
    #: Reference images and outputs, see ``multigrain.bundle.reference``.
    reference: FileName = ""
    int8: Int8Entry | None = None
    #: Why there is no 8-bit graph; empty if there is one, or if none was wanted.
    no_int8: Text = ""

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

    format_version: Count = 1
    name: str = Field(pattern=NAME_PATTERN)
    version: int = Field(ge=1, le=2**63 - 1)
    create_time: Text = ""
    multigrain_version: Text = ""
    model: ModelSpec
    embedding_size: int = Field(ge=1, le=_MAX_EMBEDDING)
    labels: Labels = Field((), max_length=MAX_LABELS)
    weights: FileName = "weights.safetensors"
    heads: tuple[Head, ...] = Field(min_length=1, max_length=_MAX_HEADS)
    files: dict[FileName, FileEntry] = Field(default_factory=dict, max_length=MAX_FILES - 1)
    metrics: Metrics = Field(default_factory=dict)
    source: Source = Source()
    export_job: Text = ""

    @classmethod
    def parse(cls, data: bytes) -> BundleManifest:
        """Reads ``model.json`` from any source. Raises ValueError with the first problem."""
        return parse_manifest(cls, data, max_classes=MAX_LABELS)

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

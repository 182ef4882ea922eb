"""All benchmarks, by the question that each answers. ``python -m benchmarks`` lists and runs them.

What is not here is a part of one: programs that are measured (``mindspore_step``,
``pytorch_training``, ``machine_limit``, ``peers``), callers, images and models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Area = Literal["Serving", "Indexes", "Hostile callers", "Jobs and events", "Training", "Numerics"]
AREAS: Final[tuple[Area, ...]] = (
    *("Serving", "Indexes", "Hostile callers", "Jobs and events", "Training", "Numerics"),
)


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: of its module below ``benchmarks``, and of its results.
        area: section of the documentation.
        question: that it answers.
        compares: what with what; completes "Compares ...".
        minutes: that it takes on two cores.
        main: whether ``make bench`` runs it.
        needs: packages beyond the project's own, or nothing.
        data: whether it writes models, and takes the option ``--data`` to keep them.
        arguments: for ``make bench``.
    """

    name: str
    area: Area
    question: str
    compares: str
    minutes: float
    main: bool = False
    needs: str = ""
    data: bool = False
    arguments: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        return f"benchmarks.{self.name}"

    @property
    def duration(self) -> str:
        if self.minutes < 1:
            return "half a minute"
        if self.minutes < 90:
            return f"{self.minutes:g} minute{'s' if self.minutes != 1 else ''}"
        return f"{self.minutes / 60:g} hours"


_ALL: Final = (
    Benchmark(
        "serving",
        "Serving",
        "How near does serving come to what the processor can compute?",
        "16 callers, one caller and EmbedStream with preprocessing and network in one process, "
        "without a server",
        4,
        main=True,
        data=True,
    ),
    Benchmark(
        "overload",
        "Serving",
        "What happens when there are more callers than the processor can serve?",
        "256 callers that follow the server's delays, and calls at five times the rate, with 16 "
        "callers",
        3,
        main=True,
        data=True,
    ),
    Benchmark(
        "call_cost",
        "Serving",
        "What does a call cost, and how near does a fast network come to what gRPC can do?",
        "the CPU time and rate of small calls with those of an empty grpc.aio handler",
        4,
        main=True,
    ),
    Benchmark(
        "other_servers",
        "Serving",
        "How does it compare with other servers?",
        "multigrain with PyTriton and with a plain grpc.aio server, all with ONNX Runtime",
        4,
        needs="PyTriton for one of the servers: `make peers-serving` installs it",
        data=True,
    ),
    Benchmark(
        "swaps",
        "Serving",
        "Do callers notice that a model is replaced by another version?",
        "p99 of calls during a swap with that of the others",
        3,
        data=True,
    ),
    Benchmark(
        "serving_limit",
        "Serving",
        "How fast and how exact is each runtime on this processor?",
        "openvino-int8, openvino-bf16, openvino-f32 and onnxruntime with MindSpore's float32 "
        "embeddings, plain and whitened, and the data types of responses with fp32",
        4,
        main=True,
        data=True,
    ),
    Benchmark(
        "engines",
        "Serving",
        "How long is a model away when its engine is killed, and does a load slow down others?",
        "the p99 of one caller while another model is loaded with that of the caller alone",
        3,
        data=True,
    ),
    Benchmark(
        "http_call",
        "Serving",
        "What does a call over HTTP cost beside one over gRPC?",
        "the daemon's CPU time for a call over HTTP with that of the same call over gRPC",
        1,
        data=True,
    ),
    Benchmark(
        "sandbox",
        "Serving",
        "Does the sandbox make an engine slower?",
        "an engine in its sandbox with one without, one image at a time",
        0.5,
    ),
    Benchmark(
        "hostile_images",
        "Hostile callers",
        "What does an ordinary caller notice beside a caller of hostile images?",
        "p99 and memory of an ordinary caller beside each kind of hostile image with those of the "
        "caller alone",
        6,
        data=True,
    ),
    Benchmark(
        "unauthenticated",
        "Hostile callers",
        "What can callers without a token do to a daemon?",
        "memory, health checks and the latency of a caller with a token during each attack with "
        "those without an attack",
        4,
    ),
    Benchmark(
        "control_plane",
        "Jobs and events",
        "Do lists of jobs and event streams scale?",
        "10,000 jobs, 1,000,000 events and 500 subscribers with the goals",
        3,
    ),
    Benchmark(
        "index_search",
        "Indexes",
        "How much does a search of a large index find, and what does it cost?",
        "LanceDB with the products of all vectors, and with faiss",
        6,
        needs="faiss-cpu, for the comparison with it",
    ),
    Benchmark(
        "near_copies",
        "Indexes",
        "What does it cost to find all pairs of near copies?",
        "the search by bounds with the products of all vectors",
        3,
    ),
    Benchmark(
        "wire",
        "Jobs and events",
        "What does a message between the processes cost?",
        "encoding and decoding of each message with json.dumps and json.loads of the same fields",
        0.5,
    ),
    Benchmark(
        "import_time",
        "Jobs and events",
        "How long does importing the client and the daemon take?",
        "both with importing grpc.aio alone",
        0.5,
    ),
    Benchmark(
        "step_time",
        "Training",
        "What does THOR cost over momentum, in time and memory?",
        "THOR's step, refresh step and state with those of SGD with momentum, alternately",
        3,
        main=True,
    ),
    Benchmark(
        "pytorch_step",
        "Training",
        "How fast is a training step in MindSpore?",
        "it with the same step in PyTorch, alternately",
        2,
        main=True,
        needs="PyTorch: `make peers` first",
    ),
    Benchmark(
        "step_operators",
        "Training",
        "Where does the time of a training step go?",
        "the operators of a step in MindSpore, with momentum and with THOR, with those of the same "
        "step in PyTorch",
        4,
        needs="PyTorch: `make peers` first",
    ),
    Benchmark(
        "job_start",
        "Jobs and events",
        "How long after its submission does a training job do its second step?",
        "a job whose network was trained before with the same job and no compiled graphs",
        2,
    ),
    Benchmark(
        "job_overhead",
        "Training",
        "What does a job add to the training step?",
        "a job's step with events, checkpoints and data loading with MindSpore's own training "
        "cell on a batch in memory",
        4,
        main=True,
        arguments=("--rounds", "1"),
    ),
    Benchmark(
        "scaling",
        "Training",
        "Do two workers train twice as many images as one?",
        "two workers on a core each with one worker on one core",
        4,
    ),
    Benchmark(
        "augmentation",
        "Training",
        "Should augmentation use Pillow or MindSpore's operators?",
        "the loader's augmentation with MindSpore's C++ operators, one by one and in a pipeline",
        3,
    ),
    Benchmark(
        "thor_factors",
        "Numerics",
        "Are THOR's curvature factors right?",
        "A and G of every layer with those of curvlinops' K-FAC",
        0.5,
        needs="PyTorch and curvlinops-for-pytorch",
    ),
    Benchmark(
        "unsplit_kfac",
        "Numerics",
        "What does cutting the factors into blocks cost in training?",
        "the training loss of THOR in blocks of 128 with that of K-FAC with whole factors",
        60,
        needs="PyTorch and curvlinops-for-pytorch",
    ),
    Benchmark(
        "convergence.optimizers",
        "Numerics",
        "In how many epochs does THOR reach a target accuracy?",
        "THOR with SGD with momentum, both with chosen settings and the same batches",
        360,
    ),
    Benchmark(
        "convergence.objectives",
        "Numerics",
        "What does the joint loss gain?",
        "the joint loss with classification alone, with and without repeated augmentation",
        600,
    ),
    Benchmark(
        "mixed_vectors",
        "Numerics",
        "How much recall is lost if queries and database were embedded in different precisions?",
        "searches across float32, bfloat16 and 8 bits with searches within one of them",
        4,
        data=True,
    ),
)
BENCHMARKS: Final[dict[str, Benchmark]] = {one.name: one for one in _ALL}

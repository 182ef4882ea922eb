"""Where the time of a training step goes, by kind of operator, in MindSpore and in PyTorch.

Both run the same network, batch and momentum update, alternately and under their own profilers;
THOR's step runs in MindSpore alone. ``--pytorch`` names an interpreter with PyTorch.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from benchmarks import results
from benchmarks.alternating import BenchmarkProcess, Measurement, peak_mib, serve

# Rows of the table. An operator belongs to the first kind that has a part of its name.
KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("THOR: products with the inverses", ("BatchMatMul",)),
    ("BatchNorm", ("BatchNorm", "batch_norm")),
    ("pooling", ("MaxPool", "max_pool")),
    ("ReLU", ("ReLU", "Relu", "relu", "threshold", "clamp_min")),
    ("convolutions as matrix products", ("MatMul", "Im2Col", "Col2Im")),
    ("convolutions", ("Conv2D", "convolution")),
    ("momentum", ("ApplyMomentum", "_foreach", "SGD")),
    ("matrix products", ("addmm", "aten::mm", "aten::bmm", "linear")),
    ("sums and products of tensors", ("Add", "add", "Mul", "mul", "Sub", "sub", "Sum", "sum")),
    (
        "copies",
        (
            *("Reshape", "Transpose", "Concat", "Split", "Unstack", "Slice", "Cast", "Assign"),
            *("copy", "contiguous", "clone", "reorder", "to_dense", "empty", "fill", "zero"),
        ),
    ),
)
OTHER = "other operators"
# Launching operators, Python, and waiting for the processor.
BETWEEN = "between operators"
PROCESSOR = "processor time"
WARM_UP = 3  # steps in PyTorch


def kind_of(operator: str) -> str:
    """Returns the row of an operator."""
    if operator == BETWEEN:
        return BETWEEN
    for kind, parts in KINDS:
        if any(part in operator for part in parts):
            return kind
    return OTHER


def measure(one: Callable[[], object], profile: Callable[[int], dict[str, float]]) -> None:
    """Answers the parent: unprofiled steps, then as many profiled ones."""

    def take(steps: int, parts: bool) -> Measurement:
        seconds = []
        used = time.process_time()
        for _ in range(steps):
            begin = time.perf_counter()
            one()
            seconds.append(time.perf_counter() - begin)
        found = {PROCESSOR: (time.process_time() - used) / steps}
        if parts:
            for operator, each in profile(steps).items():
                kind = kind_of(operator)
                found[kind] = found.get(kind, 0.0) + each
        return Measurement(seconds, peak_mib=peak_mib(), parts=found)

    serve(take)


def mindspore_program(options: argparse.Namespace) -> None:
    """Steps of a training job's step in MindSpore."""
    import mindspore

    from benchmarks.mindspore_step import Batch, product_step, training_spec

    mindspore.set_device("CPU")
    spec = training_spec(
        options.program, options.batch, options.side, trunk=options.trunk, frequency=10**6
    )
    batch = Batch.of(options.batch, options.side)
    model, step = product_step(spec)

    def one() -> None:
        step(batch.images, batch.labels, batch.instances)
        model.classifier.bias.asnumpy()  # waits for the update

    def profile(steps: int) -> dict[str, float]:
        api = mindspore.profiler
        with tempfile.TemporaryDirectory() as folder:
            profiler = api.profile(
                activities=[api.ProfilerActivity.CPU],
                on_trace_ready=api.tensorboard_trace_handler(folder),
            )
            profiler.start()
            begin = time.perf_counter()
            for _ in range(steps):
                one()
            wall = (time.perf_counter() - begin) / steps
            profiler.stop()
            (file,) = Path(folder).rglob("cpu_op_type_info_0.csv")
            with file.open() as rows:
                found = {
                    row["op_type"]: float(row["total_compute_time"]) / 1000 / steps
                    for row in csv.DictReader(rows)
                }
        return found | {BETWEEN: wall - sum(found.values())}

    for _ in range(options.warm_up):
        one()
    measure(one, profile)


def pytorch_program(options: argparse.Namespace) -> None:
    """The same network in PyTorch, channels last, with SGD."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    from tests.peers.networks import TorchResNet

    torch.manual_seed(0)
    net = TorchResNet(options.trunk, 1000, 3.0).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    criterion = torch.nn.CrossEntropyLoss()
    images = torch.randn(options.batch, 3, options.side, options.side)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (options.batch,))

    def one() -> None:
        optimizer.zero_grad()
        _, logits = net(images)
        criterion(logits, labels).backward()
        optimizer.step()

    def profile(steps: int) -> dict[str, float]:
        with torch_profile(activities=[ProfilerActivity.CPU]) as recorded:
            begin = time.perf_counter()
            for _ in range(steps):
                one()
            wall = (time.perf_counter() - begin) / steps
        found: dict[str, float] = defaultdict(float)
        for event in recorded.key_averages():
            found[event.key] += event.self_cpu_time_total / 1e6 / steps
        return dict(found) | {BETWEEN: wall - sum(found.values())}

    for _ in range(WARM_UP):
        one()
    measure(one, profile)


def main() -> int:
    parser = results.parser("step_operators")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--trunk", default="resnet50")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--cores", type=int, default=0,
        help="cores to compute on; 0 = all. With 1, processor times also hold beside other load",
    )  # fmt: skip
    parser.add_argument("--pytorch", default=sys.executable, help="interpreter with PyTorch")
    # MindSpore tunes the number of threads per kernel in its first 15 steps or so.
    parser.add_argument("--warm-up", type=int, default=14, help="steps in MindSpore")
    parser.add_argument("--program", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cores:
        # Before a library counts them; programs inherit it.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-options.cores :])
    if options.program:
        (pytorch_program if options.program == "pytorch" else mindspore_program)(options)
        return 0
    report = results.Report("step_operators", options)
    common = [
        *("--batch", str(options.batch), "--side", str(options.side)),
        *("--trunk", options.trunk, "--warm-up", str(options.warm_up)),
    ]
    pythons = {"momentum": "", "thor": "", "pytorch": options.pytorch}
    module = "benchmarks.step_operators"
    steps: dict[str, list[Measurement]] = {name: [] for name in pythons}
    programs = {
        name: BenchmarkProcess(module, ["--program", name, *common], python=python)
        for name, python in pythons.items()
    }
    try:
        for number in range(options.rounds):
            for name, program in programs.items():
                steps[name].append(program.measure(2, parts=number == options.rounds - 1))
    finally:
        for program in programs.values():
            program.__exit__(None, None, None)

    shape = f"{options.trunk}, {options.batch} images of {options.side} px"
    wall = {n: [statistics.mean(m.seconds) * 1000 for m in found] for n, found in steps.items()}
    used = {n: [m.parts[PROCESSOR] * 1000 for m in found] for n, found in steps.items()}
    peer = "PyTorch, SGD with momentum"
    for name, title in (("momentum", "momentum"), ("thor", "THOR, no refresh")):
        report.compare(
            f"step, {title}; {shape}", wall[name], over=wall["pytorch"], reference=peer, unit="ms"
        )
        report.compare(
            f"its processor time, {title}", used[name],
            over=used["pytorch"], reference=peer, unit="ms",
        )  # fmt: skip
    table = report.table(
        f"Milliseconds of a profiled step by kind of operator; {shape}",
        ("MindSpore, momentum", "MindSpore, THOR", "PyTorch, momentum"),
        first="kind",
    )
    for kind in (*(kind for kind, _ in KINDS), OTHER, BETWEEN):
        cells = [steps[name][-1].parts.get(kind, 0.0) * 1000 for name in pythons]
        if any(cells):
            table.row(kind, *(round(cell, 1) for cell in cells))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())

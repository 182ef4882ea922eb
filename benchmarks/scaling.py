"""Scaling from one worker on one core to two workers on two cores, ResNet-50 at 224 px.

Every worker has the same batch (weak scaling), so the ideal step time stays the same. Runs with one
and with two workers alternate; msrun starts them as in a job. After the first step, which compiles,
each worker is bound to one core: MindSpore's kernel threads ignore the thread settings, and a
worker limited to one thread used 1.4 cores. The all-reduce is timed separately on tensors with the
shapes of the gradients.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks import results
from multigrain.jobs.launchers import HOST, free_port
from multigrain.machine import THREAD_VARIABLES, available_cpus

LIMIT = 0.85
# The first step compiles.
WARM_UP = 1


@dataclass(frozen=True)
class Times:
    """Seconds of a run's steps and all-reduces, CPU time / wall time, MiB of gradients."""

    steps: list[float]
    all_reduces: list[float]
    cores: float
    mib: float


def bind_to(core: int) -> None:
    """Binds every thread of this process to one core; later threads inherit it.

    Call it after the first step: bound workers took 20 to 31 s to connect and compile, unbound
    workers 8 s.
    """
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), {core})
        except ProcessLookupError:
            continue  # the thread has ended


def work(out: Path, batch: int, side: int, steps: int) -> None:
    """Runs the steps of one worker."""
    import mindspore
    from mindspore import Tensor
    from mindspore.communication import get_group_size, get_rank, init

    from benchmarks.mindspore_step import Batch, product_step, training_spec
    from multigrain.optim.reduce import BucketedMean, Reducer

    mindspore.set_device("CPU")
    init()
    world = get_group_size()
    data = Batch.of(batch, side)
    model, step = product_step(training_spec("momentum", batch, side), world=world)
    seconds, cpu = [], []
    for number in range(WARM_UP + steps):
        if number == WARM_UP:
            allowed = sorted(os.sched_getaffinity(0))
            bind_to(allowed[get_rank() % len(allowed)])
        begin, used = time.perf_counter(), time.process_time()
        step(data.images, data.labels, data.instances)
        model.classifier.bias.asnumpy()  # waits for the update
        seconds.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - used)
    reduces: list[float] = []
    shapes = [tuple(p.shape) for p in model.trainable_params()]
    if world > 1:
        mean = BucketedMean(Reducer(world), shapes)

        @mindspore.jit
        def reduce(*tensors):  # type: ignore[no-untyped-def]
            return mean(*tensors)

        tensors = [Tensor(np.ones(s, np.float32)) for s in shapes]
        for _ in range(WARM_UP + steps):
            begin = time.perf_counter()
            reduce(*tensors)[-1].asnumpy()
            reduces.append(time.perf_counter() - begin)
    if get_rank() == 0:
        mib = sum(float(np.prod(s)) for s in shapes) * 4 / 2**20
        cores = sum(cpu[WARM_UP:]) / sum(seconds[WARM_UP:])
        times = Times(seconds[WARM_UP:], reduces[WARM_UP:], cores, mib)
        out.write_text(json.dumps(asdict(times)))


def run(world: int, options: argparse.Namespace) -> Times:
    """Starts the workers and waits for them."""
    binaries = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "times.json"
        done = subprocess.run(
            [
                str(binaries / "msrun"),
                f"--worker_num={world}",
                f"--local_worker_num={world}",
                f"--master_addr={HOST}",
                f"--master_port={free_port()}",
                f"--log_dir={folder}/log",
                "--join=True",
                *("python", "-m", "benchmarks.scaling", "--out", str(out)),
                *("--batch", str(options.batch), "--side", str(options.side)),
                *("--steps", str(options.steps)),
            ],
            # msrun starts its workers with the command "python".
            env={
                **os.environ,
                **dict.fromkeys(THREAD_VARIABLES, "1"),
                "PATH": os.pathsep.join((str(binaries), os.environ["PATH"])),
            },
            capture_output=True,
            text=True,
        )
        if not out.exists():
            logs = "".join(p.read_text()[-2000:] for p in Path(folder).glob("log/*.log"))
            raise RuntimeError(f"msrun exited with code {done.returncode}: {done.stderr}{logs}")
        return Times(**json.loads(out.read_text()))


def main() -> int:
    parser = results.parser("scaling")
    parser.add_argument("--batch", type=int, default=30, help="of each worker")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.out:
        work(options.out, options.batch, options.side, options.steps)
        return 0
    report = results.Report("scaling", options)
    if available_cpus() < 2:
        report.missing("two workers", "this machine has one core")
        return report.finish()
    one: list[Times] = []
    two: list[Times] = []
    for _ in range(options.rounds):
        one.append(run(1, options))
        two.append(run(2, options))
    single, double = ([1000 * statistics.median(run.steps) for run in runs] for runs in (one, two))
    report.compare(
        "step of two workers, each on a core", double, unit="ms",
        over=single, reference="one worker on one core", at_most=round(1 / LIMIT, 2),
    )  # fmt: skip
    reduces = [1000 * statistics.median(run.all_reduces) for run in two]
    report.compare(
        f"all-reduce of {two[0].mib:.0f} MiB in it", reduces, unit="ms",
        over=double, reference="the step",
    )  # fmt: skip
    report.compare("cores used per worker", [run.cores for run in two])
    report.note(f"ResNet-50 at 224 px, {options.batch} images for each worker.")
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())

"""Two workers on two cores against one worker on one core: ResNet-50 at 224 px.

``python -m benchmarks.scaling``. Every worker has the same batch (weak scaling), so that the
ideal is the same time for a step. One and two workers are started in turn, by msrun as in a job.
After the first step, which compiles, each worker keeps to a core of its own: MindSpore's kernel
threads obey no variable or setting, so that a worker told to use one thread used 1.4 cores.
The all-reduce is timed apart, on tensors of the gradients' shapes. Ends with status 1 if the
efficiency, one worker's time over two workers', is below 0.85.
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

from multigrain.jobs.launchers import HOST, free_port
from multigrain.jobs.worker import THREAD_VARIABLES

LIMIT = 0.85
# The first compiles.
WARM_UP = 1


@dataclass(frozen=True)
class Figures:
    """Of one run: seconds of the steps and of the all-reduces, and CPU time over wall time."""

    steps: list[float]
    all_reduces: list[float]
    cores: float
    mib: float


def keep_to(core: int) -> None:
    """Binds every thread of this process to one core; threads to come inherit it.

    Not at the start: two workers bound before they had joined and compiled took 20 to 31 s for
    it, unbound 8 s.
    """
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), {core})
        except ProcessLookupError:
            continue  # it has ended since


def work(out: Path, batch: int, side: int, steps: int) -> None:
    """What each worker does."""
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
            keep_to(allowed[get_rank() % len(allowed)])
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
        figures = Figures(seconds[WARM_UP:], reduces[WARM_UP:], cores, mib)
        out.write_text(json.dumps(asdict(figures)))


def run(world: int, options: argparse.Namespace) -> Figures:
    """Starts the workers and waits for them."""
    binaries = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
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
            raise RuntimeError(f"msrun ended with {done.returncode}: {done.stderr}{logs}")
        return Figures(**json.loads(out.read_text()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=30, help="of each worker")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.out:
        work(options.out, options.batch, options.side, options.steps)
        return 0
    one: list[Figures] = []
    two: list[Figures] = []
    for _ in range(options.rounds):
        one.append(run(1, options))
        two.append(run(2, options))
    single = statistics.median(s for f in one for s in f.steps)
    double = statistics.median(s for f in two for s in f.steps)
    reduce = statistics.median(s for f in two for s in f.all_reduces)
    for name, runs in (("1 worker ", one), ("2 workers", two)):
        each = statistics.median(s for f in runs for s in f.steps)
        print(f"{name}: {each * 1000:.0f} ms a step, {runs[0].cores:.2f} cores a worker")
    print(f"all-reduce of {two[0].mib:.0f} MiB: {reduce * 1000:.0f} ms = {reduce / double:.1%}")
    print(f"efficiency {single / double:.3f}, at least {LIMIT}")
    return 0 if single / double >= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())

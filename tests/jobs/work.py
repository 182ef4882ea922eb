"""Entry points that tests run in place of a training."""

from __future__ import annotations

import os
import signal
import time

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.events.records import CheckpointRecord, LogRecord, LossRecord
from multigrain.jobs.context import Outcome, WorkerContext

LONG = "314.159265"
"""Seconds by which tests recognize the sleeping processes of ``leave_children``."""


def loss(step: int) -> LossRecord:
    return LossRecord(step, 100, 1, 1, 1.0 / step, 0.0, 0.0, 0.1)


def succeed(ctx: WorkerContext) -> Outcome:
    for step in range(1, 6):
        ctx.reporter.emit(loss(step)) if ctx.rank == 0 else ctx.reporter.alive()
    return Outcome(message=f"5 steps by {ctx.world}")


def run_until_stopped(ctx: WorkerContext) -> Outcome:
    """One step every 20 ms; saves a checkpoint when it is stopped."""
    step = 0
    while not ctx.reporter.stop_requested:
        step += 1
        ctx.reporter.emit(loss(step)) if ctx.rank == 0 else ctx.reporter.alive()
        time.sleep(0.02)
    if ctx.rank == 0:
        ctx.reporter.emit(CheckpointRecord(step, 1, f"step-{step}"))
    return Outcome(stopped=True, message=f"stopped at step {step}")


def finish_when_stopped(ctx: WorkerContext) -> Outcome:
    ctx.reporter.emit(loss(1))
    while not ctx.reporter.stop_requested:
        time.sleep(0.01)
    return Outcome()


def ignore_stop(ctx: WorkerContext) -> Outcome:
    ctx.reporter.emit(loss(1))
    while True:
        ctx.reporter.alive()
        time.sleep(0.1)


def compile_forever(ctx: WorkerContext) -> Outcome:
    """As MindSpore's compiler, which cannot be interrupted."""
    while True:
        ctx.reporter.alive()
        time.sleep(0.1)


def stall_in_rank_1(ctx: WorkerContext) -> Outcome:
    if ctx.rank == 0:
        ctx.reporter.emit(loss(1))
    while ctx.rank != 1:
        ctx.reporter.alive()
        time.sleep(0.05)
    time.sleep(60)
    return Outcome()


def always_die(ctx: WorkerContext) -> Outcome:
    print(f"rank {ctx.rank} is about to die", flush=True)
    if ctx.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    # The peers of a dead worker first see a broken connection.
    time.sleep(0.05)
    raise RuntimeError("connection to a peer was lost")


def raise_defect(ctx: WorkerContext) -> Outcome:
    raise ZeroDivisionError("somewhere deep")


def run_out_of_memory(ctx: WorkerContext) -> Outcome:
    raise MemoryError


def save_and_run_out_of_memory(ctx: WorkerContext) -> Outcome:
    ctx.reporter.emit(CheckpointRecord(ctx.attempt, 1, f"step-{ctx.attempt}"))
    raise RuntimeError("Memory isn't enough and alloc failed")


def exit_without_report(ctx: WorkerContext) -> Outcome:
    os._exit(3)


def refuse_dataset(ctx: WorkerContext) -> Outcome:
    if ctx.rank == 1:
        time.sleep(0.1)
        raise MultigrainError(ErrorKind.DATASET, "class folder 7 has no images; add some")
    raise RuntimeError("connection to a peer was lost")


def leave_children(ctx: WorkerContext) -> Outcome:
    """Starts processes that would outlive the worker, in its session and outside of it."""
    import subprocess

    for new_session in (False, True):
        subprocess.Popen(["sleep", LONG], start_new_session=new_session)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvpe("sleep", ["sleep", LONG], {"PATH": os.environ["PATH"]})
        os._exit(0)
    os.wait()
    return Outcome()


def all_reduce(ctx: WorkerContext) -> Outcome:
    """One AllReduce over all workers: the sum of (rank + 1)."""
    import mindspore
    from mindspore import Tensor, communication, ops

    assert communication.get_rank() == ctx.rank
    assert communication.get_group_size() == ctx.world
    total = ops.AllReduce()(Tensor([ctx.rank + 1.0], mindspore.float32))
    threads = os.environ["OMP_NUM_THREADS"]
    ctx.reporter.emit(LogRecord("INFO", f"sum {total.asnumpy()[0]:g} threads {threads}", ctx.rank))
    return Outcome(message="reduced")


def reduce_forever(ctx: WorkerContext) -> Outcome:
    import mindspore
    from mindspore import Tensor, ops

    reduce = ops.AllReduce()
    step = 0
    while True:
        step += 1
        stop = reduce(Tensor([float(ctx.reporter.stop_requested)], mindspore.float32)).asnumpy()
        if stop[0] > 0:
            return Outcome(stopped=True, message="stopped")
        ctx.reporter.emit(loss(step)) if ctx.rank == 0 else ctx.reporter.alive()
        time.sleep(0.01)


def hold_the_gil(ctx: WorkerContext) -> Outcome:
    """Native code that holds the GIL: no other thread of the worker runs."""
    import ctypes

    ctx.reporter.emit(loss(1))
    time.sleep(0.3)
    ctypes.PyDLL(None).sleep(60)
    return Outcome()

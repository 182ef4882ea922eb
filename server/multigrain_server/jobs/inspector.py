"""Inspects datasets in processes of their own: the daemon decodes no image."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import Collection
from typing import Any, Final

import msgspec
import structlog

from multigrain.data.inspection_report import InspectionRequest, InspectionResult
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.limits import ImageLimits
from multigrain.processes import (
    child_environment,
    end_first_without_memory,
    needed_environment,
    python_command,
)
from multigrain.sandbox.policies import WORKER_VARIABLE
from multigrain.specs.training import TrainingSpec
from multigrain_server.jobs.store import JobFilter, JobStore

_log = structlog.get_logger(__name__)

_AT_ONCE: Final = 2
_IMAGES: Final = 2000
_MOST_IMAGES: Final = 100_000
_SECONDS: Final = 30.0
_MOST_SECONDS: Final = 600.0
# Beside the decoding: to list the folder and to find equal files.
_OTHER_SECONDS: Final = 240.0
_LATEST: Final = 50  # training jobs among which a run of the same network is searched
_FEWEST_STEPS: Final = 10  # of a run, for a rate without compilation
_MODULE: Final = "multigrain.train.inspect_process"


def inspection_limits(images: int, seconds: float) -> tuple[int, float]:
    """Checks the limits of a request; 0 = the default.

    Raises:
        MultigrainError: INVALID_FIELD.
    """
    if images > _MOST_IMAGES:
        raise MultigrainError.field("max_images", f"is {images}, must be at most {_MOST_IMAGES}")
    if not math.isfinite(seconds) or not 0 <= seconds <= _MOST_SECONDS:
        raise MultigrainError.field(
            "max_seconds", f"is {seconds:g}, must be 0 to {_MOST_SECONDS:g}"
        )
    return images or _IMAGES, seconds or _SECONDS


class Inspector:
    """Starts a process for each inspection, two at a time.

    Args:
        store: finds an earlier run of the same network, by which the time is estimated.
        limits: of an image file, with the data roots.
        sandbox: "auto" or "off", as for workers.
        environment: further variables that the processes get, as workers do.
    """

    def __init__(
        self,
        store: JobStore,
        limits: ImageLimits,
        sandbox: str,
        environment: Collection[str] = (),
    ) -> None:
        self._store = store
        self._limits = limits
        self._sandbox = sandbox
        self._environment = environment
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def run(self, spec: object, images: int, seconds: float) -> InspectionResult:
        """Inspects the dataset of a training specification and plans the run.

        Args:
            spec: resolved and checked.
            images: most images that are decoded.
            seconds: after which no further image is decoded.

        Raises:
            MultigrainError: DATASET, if the images cannot be listed or split, or not in time;
                INTERNAL, if the process fails.
        """
        if not isinstance(spec, TrainingSpec):
            raise TypeError("only the dataset of a training specification is inspected")
        rate, job_id = self._measured(spec)
        body = msgspec.json.encode(
            InspectionRequest(
                spec.model_dump(mode="json"), self._limits, images, seconds, rate, job_id
            ),
            enc_hook=str,
        )
        async with self._turns:
            output = await self._output(body, seconds + _OTHER_SECONDS)
        result = msgspec.json.decode(output, type=InspectionResult)
        if result.error_kind:
            raise MultigrainError(ErrorKind[result.error_kind], result.error)
        return result

    async def _output(self, body: bytes, seconds: float) -> bytes:
        environment = needed_environment(os.environ, self._environment)
        environment[WORKER_VARIABLE] = self._sandbox
        process = await asyncio.create_subprocess_exec(
            *python_command(_MODULE),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=child_environment(environment),
            cwd="/",
            start_new_session=True,
        )
        end_first_without_memory(process.pid)
        try:
            async with asyncio.timeout(seconds):
                output, errors = await process.communicate(body)
        except TimeoutError:
            raise MultigrainError(
                ErrorKind.DATASET,
                f"the dataset was not inspected within {seconds:.0f} s: its disk is slow, or it "
                "has very many files; inspect a part of it",
            ) from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        if process.returncode != 0:
            text = errors.decode(errors="replace").strip()
            _log.error("inspection failed", exit_code=process.returncode, output=text[-2000:])
            raise MultigrainError(
                ErrorKind.INTERNAL,
                f"the process that inspects the dataset ended with {process.returncode}; the "
                "daemon's log has its output",
            )
        return output

    def _measured(self, spec: TrainingSpec) -> tuple[float, str]:
        """Images per second of the newest run of the same network on such devices, and its job."""
        for row in self._store.page(JobFilter(kinds=("TRAINING",)), None, _LATEST):
            loss, other = row.job.view.last_loss, row.job.request.training
            if other is None or loss is None or loss.step < _FEWEST_STEPS:
                continue
            if _speed_of(other) == _speed_of(spec):
                return loss.images_per_second, row.job.job_id
        return 0.0, ""


def _speed_of(spec: TrainingSpec) -> tuple[Any, ...]:
    """What decides how fast a network trains."""
    model, devices = spec.model, spec.devices
    return (
        *(model.trunk, model.stem, model.image_size, spec.optimizer.kind, spec.precision),
        *(devices.target, devices.count, devices.threads_per_worker),
    )

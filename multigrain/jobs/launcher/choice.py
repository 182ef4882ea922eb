"""Which launcher a job uses."""

from __future__ import annotations

from multigrain.jobs.launcher.base import Launcher
from multigrain.jobs.launcher.direct import DirectLauncher
from multigrain.jobs.launcher.msrun import MsrunLauncher
from multigrain.jobs.launcher.rank_table import RankTableLauncher
from multigrain.jobs.request import JobKind, JobRequest


def world_of(request: JobRequest) -> int:
    """Number of workers. An export has nothing to share: one."""
    return 1 if request.kind is JobKind.EXPORT else request.spec.devices.count


def choose_launcher(request: JobRequest) -> Launcher:
    """Training always has a cluster, of one worker too, so that there is one way of training;
    evaluation and export have one when there is more than one worker."""
    if request.kind is not JobKind.TRAINING and world_of(request) == 1:
        return DirectLauncher()
    if request.spec.devices.launcher == "rank-table":
        return RankTableLauncher()
    return MsrunLauncher()

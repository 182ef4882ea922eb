"""Replaces a model with another version at regular intervals under load."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass, field

import numpy as np

from benchmarks import results
from benchmarks.photographs import photographs
from benchmarks.servers import Server, multigrain, write_resnet50
from multigrain_client import AsyncClient, Client

_CALLERS = 8


@dataclass
class Swaps:
    """Results of the calls.

    Args:
        calm: seconds of each call outside a swap.
        during: seconds of each call that started or ended during a swap.
        errors: of failed calls.
        rss_mb: of daemon and engines after each swap, once the old engine has exited.
    """

    calm: list[float] = field(default_factory=list)
    during: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)

    @property
    def calls(self) -> int:
        return len(self.calm) + len(self.during)

    def show(self, report: results.Report) -> None:
        """Adds the comparisons."""
        calm, during = _p99_ms(self.calm), _p99_ms(self.during)
        report.compare(
            f"p99 of {len(self.during)} calls during a swap", during, unit="ms",
            over=calm, reference=f"{len(self.calm)} other calls", at_most=2.0,
        )  # fmt: skip
        report.compare("errors", len(self.errors), at_most=0)
        report.compare("swaps", len(self.rss_mb))
        # The first swaps fill caches.
        later = self.rss_mb[len(self.rss_mb) // 4 :]
        if len(later) > 2:
            slope = float(np.polyfit(range(len(later)), later, 1)[0])
            report.compare("growth of the memory of daemon and engine per swap", slope, unit="MB")
        if self.errors:
            report.note(f"Errors: {'; '.join(self.errors[:3])}")


async def swap_under_load(server: Server, requests: int, swap_every: int) -> Swaps:
    """Eight callers send without a pause while resnet50@1 and resnet50@2 replace each other."""
    swaps = Swaps()
    pictures = photographs()
    swapping = False
    async with AsyncClient(server.address) as client:

        async def caller(first: int) -> None:
            for number in range(first, requests, _CALLERS):
                began, before = time.perf_counter(), swapping
                try:
                    await client.embed(pictures[number % len(pictures)])
                except Exception as error:  # every error counts
                    swaps.errors.append(repr(error)[:200])
                into = swaps.during if before or swapping else swaps.calm
                into.append(time.perf_counter() - began)

        async def swap() -> None:
            nonlocal swapping
            version = 2
            while swaps.calls < requests:
                await asyncio.sleep(0.05)
                if swaps.calls < (len(swaps.rss_mb) + 1) * swap_every:
                    continue
                swapping = True
                await client.load_model(f"resnet50@{version}", make_default=True)
                await client.unload_model(f"resnet50@{3 - version}")
                swapping = False
                version = 3 - version
                while len(server.process.children(recursive=True)) > 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)  # nothing signals that a grandchild has exited
                swaps.rss_mb.append(server.rss_mb())

        task = asyncio.create_task(swap())
        await asyncio.gather(*(caller(number) for number in range(_CALLERS)))
        task.cancel()
    return swaps


def _p99_ms(seconds: list[float]) -> float:
    return 1000 * float(np.percentile(seconds or [0.0], 99))


def main() -> int:
    parser = results.parser("swaps")
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--swap-every", type=int, default=150, help="requests between two swaps")
    parser.add_argument("--runtime", default="", help="runtime of LoadModel; default auto")
    options = parser.parse_args()
    with results.data_folder(options) as data:
        for version in (1, 2):
            write_resnet50(data, version)
        report = results.Report("swaps", options)
        with multigrain(data, "resnet50@1", runtime=options.runtime) as server:
            with Client(server.address) as client:
                client.load_model("resnet50@1", make_default=True)
            swaps = asyncio.run(swap_under_load(server, options.requests, options.swap_every))
        swaps.show(report)
        return report.finish()


if __name__ == "__main__":
    sys.exit(main())

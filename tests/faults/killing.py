"""Kills clients in the middle of their calls."""

from __future__ import annotations

import multiprocessing
import random
from multiprocessing.context import ForkServerContext

from tests.faults import killed_client


def starter() -> ForkServerContext:
    """Starts processes that have imported everything and not yet used it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([killed_client.__name__])
    return context


def kill_in_the_middle(
    clients: ForkServerContext, number: int, address: str, job: str, chance: random.Random
) -> None:
    """Starts a client, waits until it is in the middle of its call, and kills it soon after.

    Args:
        clients: see :func:`starter`.
        number: picks one of the kinds of calls.
        address: of the daemon.
        job: whose events some clients follow.
        chance: how soon.
    """
    ours, theirs = clients.Pipe()
    kind = number % len(killed_client.KINDS)
    process = clients.Process(target=killed_client.run, args=(kind, address, job, theirs))
    process.start()
    theirs.close()
    assert ours.poll(60), "a client did not come so far"
    assert ours.recv_bytes() == b"!"
    process.join(chance.random() * 0.03)
    assert process.is_alive()
    process.kill()
    process.join(60)
    assert not process.is_alive()
    ours.close()

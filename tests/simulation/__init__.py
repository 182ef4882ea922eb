"""Admission and batching in virtual time: the real decisions, simulated engines and callers.

What is real: ``ImageService`` and all that it calls in the daemon (admission, shares, rates, the
supervisor that replaces engines, the messages to them), the ``Schedule`` by which an engine decodes
and computes, and the Python client's retries. What is simulated:

- ``clock``: an event loop that sets its clock forward instead of waiting, so that a minute takes a
  second, and every run of a scenario has the same result.
- ``engine``: a process that takes a certain time to decode an image and to compute a batch, whose
  pace changes at once, and that can be killed.
- ``callers``: obedient ones, which wait as long as a refusal says, and others.

``scenario`` puts them together and compares what happened with the bars:

- goodput, the images that are answered in time, is at least 0.9 of the pace;
- at most 1 % of the accepted calls are not answered by their deadline;
- the slowest tenth of equal callers gets at least half of the mean.

Nothing is promised in the 5 s after an engine starts, ends or changes its pace, nor for calls that
were accepted before a change and are due after it. A deadline must allow three batches of the best
size, and there must be enough callers to fill two.

``python -m tests.simulation`` prints a table of many scenarios; the tests run
the most telling ones.
"""

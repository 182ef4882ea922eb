"""The engine: a process that serves one model. It decodes images, batches and computes them.

The daemon speaks to it over a Unix socket, with the messages of :mod:`multigrain.engine.protocol`.
"""

"""The process that holds one loaded model: decodes, batches, computes.

It is spoken to over a Unix socket with the messages of :mod:`multigrain.engine.protocol`.
"""

"""Runtimes: the libraries that run an exported network."""

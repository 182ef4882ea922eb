"""Indexes of images: the index process, and what the daemon does with it."""

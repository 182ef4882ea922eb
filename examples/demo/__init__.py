"""From image files to served embeddings on this machine: ``python -m examples.demo``."""

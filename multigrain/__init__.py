"""MultiGrain image embeddings: model, data, THOR, training loop, evaluation and export.

Importing this package is cheap: MindSpore is imported only by the modules that compute.
"""

__version__ = "0.2.0"

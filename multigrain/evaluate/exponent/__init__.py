"""The pooling exponent p* for a test resolution (arXiv 1902.05509, section 3.5).

Larger images want a larger p; nothing else of the network changes.
"""

"""PCA whitening of descriptors (MultiGrain, arXiv 1902.05509, section 3.5 and its code).

NumPy only: fitted in float64 at export, applied in float32 in serving.
"""

"""How fast and how well training converges, measured on small real datasets."""

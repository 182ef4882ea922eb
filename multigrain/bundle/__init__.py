"""Model bundles: a folder with a manifest, weights, graphs and reference outputs."""

"""The registry of model bundles, and what is loaded of it."""

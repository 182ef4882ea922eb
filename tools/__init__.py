"""Tools for working on the repository; not installed."""

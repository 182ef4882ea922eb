"""The status pages: jobs, models, calls and devices as HTML without scripts."""

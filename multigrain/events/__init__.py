"""The event log of a job and its records."""

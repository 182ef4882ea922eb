"""``multigrain-server doctor``: looks at the machine as the daemon would use it."""

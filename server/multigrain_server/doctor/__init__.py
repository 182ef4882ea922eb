"""``multigrain-server doctor``: checks the machine for the daemon and suggests fixes."""

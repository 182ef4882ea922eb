"""Access control: tokens, roles, and limits per client."""

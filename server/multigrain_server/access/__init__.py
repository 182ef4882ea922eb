"""Who may call what: TLS, tokens, roles."""

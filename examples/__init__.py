"""Programs that show how to use the client; run them from the repository's root."""

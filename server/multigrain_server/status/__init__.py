"""The status page: what goes on, for people, as HTML without a script."""

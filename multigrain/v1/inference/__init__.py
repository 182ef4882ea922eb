"""Generated stubs of protos/; see `make stubs`."""

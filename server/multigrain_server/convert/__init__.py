"""Between the contract's messages and the library's types."""

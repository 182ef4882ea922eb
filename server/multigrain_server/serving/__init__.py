"""Answering images: admission, engines, the service core. Knows no protobuf."""

"""The Python client of multigrain. Needs grpcio, protobuf and numpy; never MindSpore."""

"""`multigrain demo`: the whole way from image files to served embeddings, on this machine."""

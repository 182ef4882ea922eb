"""Collections of image embeddings: storage, search, near copies. Does not import MindSpore."""

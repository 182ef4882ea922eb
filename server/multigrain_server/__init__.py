"""The multigrain daemon: supervises jobs and engines, answers gRPC. Never imports MindSpore."""

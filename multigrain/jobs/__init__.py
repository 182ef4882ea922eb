"""Running a job: the runner, its workers, and the messages between them."""

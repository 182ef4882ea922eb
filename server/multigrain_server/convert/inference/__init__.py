"""Messages of the Open Inference Protocol to and from the types of the serving core."""

"""Checkpoints: all durable state in one file, so that a start reads the log's end alone."""

"""A training run in a folder: starting, watching, stopping and resuming it."""

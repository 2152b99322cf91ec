"""A training run in a folder: begun, watched, stopped and gone on with."""

"""A network that learns from strokes while they are painted: no files, no viewer."""

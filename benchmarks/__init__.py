"""Measurements whose results lie in benchmarks/results."""

"""Exports a trained network for programs without JAX."""

"""A trained network for programs without JAX."""

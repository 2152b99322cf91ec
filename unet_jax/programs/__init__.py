"""The flags of `unet-jax train`, `eval`, `predict` and `export`, and the function each calls."""

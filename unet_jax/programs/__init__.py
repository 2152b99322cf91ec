"""The flags of `unet-jax train`, `eval`, `predict` and `export`, and what each calls."""

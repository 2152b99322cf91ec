"""The loss of the paper (Sect. 3, Eq. 1): soft-max and weighted cross-entropy per pixel."""

import jax
import jax.numpy as jnp

from unet_jax.example import IGNORED


def weighted_cross_entropy(
    logits: jax.Array, labels: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Eq. 1 over one tile: -sum_x w(x) log p_l(x)(x), p the soft-max over the channels.

    Args:
      logits: float [H, W, classes].
      labels: int [H, W], the class of each pixel or `IGNORED`.
      weights: float [H, W], w of Eq. 2.

    Returns:
      The sum over the pixels that are not ignored, and their number (both of the logits' dtype).
      Divide sum by number over a whole batch, see `mean_over_pixels`.
    """
    # Not by the class as an index, whose gradient would be a scatter.
    of_class = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)  # of none, if ignored
    weights = jnp.where(of_class, weights[..., None], 0).astype(logits.dtype)
    pixels = jnp.sum(labels != IGNORED, dtype=logits.dtype)
    # Row by row, with less rounding than in one sum. Halved between, or XLA would make one of them.
    rows = jnp.sum(weights * jax.nn.log_softmax(logits), axis=(1, 2)) / 2
    return -2 * jnp.sum(rows), pixels


def mean_over_pixels(sums: jax.Array, pixels: jax.Array) -> jax.Array:
    """The loss of a batch from the sum and the number of pixels of each tile [N]; 0 if none counts.

    Dividing makes the learning rate independent of the size of the tile.
    """
    return jnp.sum(sums) / jnp.maximum(jnp.sum(pixels), 1)

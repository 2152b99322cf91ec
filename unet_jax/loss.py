"""The loss of the paper (Sect. 3, Eq. 1): soft-max and weighted cross-entropy per pixel."""

import jax
import jax.numpy as jnp
import optax

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
    counted = labels != IGNORED
    classes = jnp.where(counted, labels, 0)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
    weights = jnp.where(counted, weights, 0).astype(logits.dtype)
    return jnp.sum(weights * cross_entropy), jnp.sum(counted, dtype=logits.dtype)


def mean_over_pixels(sums: jax.Array, pixels: jax.Array) -> jax.Array:
    """The loss of a batch from each tile's sum and pixel number [N]; 0 if no pixel counts.

    Dividing makes the learning rate independent of the size of the tile.
    """
    return jnp.sum(sums) / jnp.maximum(jnp.sum(pixels), 1)

"""Training of the paper (Sect. 3): one compiled step from the images to the updated network."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from unet_jax.augmentation import augment
from unet_jax.layers import compiler_options
from unet_jax.loss import mean_over_pixels, weighted_cross_entropy
from unet_jax.network import UNet, context, contracting_path, init_params


@flax.struct.dataclass
class TrainState:
    """All that changes from step to step; there is no random key in it."""

    step: jax.Array
    params: Any
    opt_state: Any


def create_train_state(
    key: jax.Array, network: UNet, optimiser: optax.GradientTransformation, channels: int
) -> TrainState:
    """The state before the first step, for images of so many channels."""
    params = jax.jit(init_params, static_argnums=(1, 2))(key, network, channels)
    return TrainState(jnp.int32(0), params, optimiser.init(params))


@partial(jax.jit, static_argnums=1)
def tile_keys(key: jax.Array, batch_size: int) -> jax.Array:
    """The random keys [batch_size] of a step's tiles, from the step's key."""
    return jax.random.split(jax.random.split(key)[0], batch_size)


def make_train_step(
    network: UNet,
    optimiser: optax.GradientTransformation,
    *,
    tile_side: int,
    augmentation: dict[str, float],
    freeze_contracting_path: bool = False,
) -> Callable[[TrainState, dict[str, jax.Array], jax.Array], tuple[TrainState, dict]]:
    """The compiled train_step(state, batch, key) -> (state, metrics).

    A batch is a dict of examples as `augmentation.augment` takes them, each with a leading axis of
    the batch. One call augments, computes loss and gradient, and updates; the state passed in is
    used up. The metrics: `loss` (Eq. 1 per pixel) and `gradient_norm`, float32 scalars. A frozen
    contracting path stays bit for bit as it is, and has no part in the norm.
    """

    def train_step(state, batch, key):
        dropout_key = jax.random.split(key)[1]

        def augment_one(key, example):
            return augment(
                key, example, tile_side=tile_side, context=context(network.depth), **augmentation
            )

        tiles = jax.vmap(augment_one)(tile_keys(key, batch["image"].shape[0]), batch)

        def loss(params):
            logits = network.apply(
                {"params": params}, tiles["image"], train=True, rngs={"dropout": dropout_key}
            )
            return mean_over_pixels(
                *jax.vmap(weighted_cross_entropy)(logits, tiles["labels"], tiles["weights"])
            )

        value, gradient = jax.value_and_grad(loss)(state.params)
        if freeze_contracting_path:
            # The compiler leaves out what computes a gradient that nobody uses.
            gradient |= jax.tree.map(jnp.zeros_like, contracting_path(gradient))
        updates, opt_state = optimiser.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if freeze_contracting_path:
            params |= contracting_path(state.params)  # whatever momentum it had
        squares = [jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradient)]
        metrics = {"loss": value, "gradient_norm": jnp.sqrt(sum(squares))}
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(train_step, donate_argnums=0, compiler_options=compiler_options())

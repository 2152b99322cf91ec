"""Training of the paper (Sect. 3): one compiled step from the images to the updated network."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, cast

import flax
import jax
import jax.numpy as jnp
import optax

from unet_jax.augmentation import AugmentationSettings, Crop, augment
from unet_jax.layers import compiler_options
from unet_jax.loss import mean_over_pixels, weighted_cross_entropy
from unet_jax.network import UNet, context, contracting_path, init_params


@flax.struct.dataclass
class TrainState:
    """Everything that changes from step to step; it contains no random key.

    Attributes:
      step: int32, the number of steps done.
      params: the parameters that the next step continues from.
      opt_state: the state of the optimiser.
      average: of the parameters over the last steps, see `make_train_step`; None if not averaged.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    average: Any = None

    @property
    def result(self) -> Any:
        """The parameters to predict with: the average, if there is one."""
        return self.params if self.average is None else self.average


def create_train_state(
    key: jax.Array,
    network: UNet,
    optimiser: optax.GradientTransformation,
    channels: int = 1,
    *,
    averaged: bool = False,
) -> TrainState:
    """The state before the first step for images with this many channels, averaged or not."""
    params = init_params(key, network, channels)
    average = jax.tree.map(jnp.copy, params) if averaged else None
    return TrainState(jnp.int32(0), params, optimiser.init(params), average)


@partial(jax.jit, static_argnums=1)
def tile_keys(key: jax.Array, batch_size: int) -> jax.Array:
    """The random keys [batch_size] of a step's tiles, from the step's key."""
    return jax.random.split(jax.random.split(key)[0], batch_size)


TrainStep = Callable[[TrainState, Crop, jax.Array], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
    network: UNet,
    optimiser: optax.GradientTransformation,
    *,
    tile_side: int,
    augmentation: AugmentationSettings = AugmentationSettings(),
    freeze_contracting_path: bool = False,
    average_over: float = 0.0,
    deterministic: bool = False,
) -> TrainStep:
    """The compiled train_step(state, batch, key) -> (state, metrics).

    A batch is a `Crop` whose arrays have a leading batch axis. One call augments, computes loss and
    gradient, and updates; the state passed in is used up (donated). A frozen contracting path stays
    as it is, bit for bit, and does not count in the gradient's norm. For `deterministic` see
    `layers.compiler_options`.

    After step t a state's average moves 1 / (1 + average_over t) of the way to the parameters: it
    remembers the share `average_over` of the steps so far.

    In a mesh of devices (`jax.set_mesh`) the batch may be sharded along its leading axis, on Auto
    or Explicit axes; state and key are replicated, and so are the results.

    Returns:
      The step. Its metrics are float32 scalars: `loss` (Eq. 1 per pixel) and `gradient_norm`. The
      learning rate of `sgd` is in `state.opt_state.hyperparams`.
    """
    train_step = pure_train_step(
        network,
        optimiser,
        tile_side=tile_side,
        augmentation=augmentation,
        freeze_contracting_path=freeze_contracting_path,
        average_over=average_over,
    )
    options = compiler_options(deterministic)
    return jax.jit(train_step, donate_argnums=0, compiler_options=options)


def pure_train_step(
    network: UNet,
    optimiser: optax.GradientTransformation,
    *,
    tile_side: int,
    augmentation: AugmentationSettings = AugmentationSettings(),
    freeze_contracting_path: bool = False,
    average_over: float = 0.0,
) -> TrainStep:
    """The step of `make_train_step`, not compiled, for use inside a larger compiled function."""

    def train_step(state, batch, key):
        dropout_key = jax.random.split(key)[1]
        tiles = jax.vmap(
            lambda key, crop: augment(
                key, crop, augmentation, tile_side=tile_side, context=context(network.depth)
            )
        )(tile_keys(key, len(batch.image)), batch)

        def loss(params):
            if freeze_contracting_path:
                params |= jax.lax.stop_gradient(contracting_path(params))
            rngs = {"dropout": dropout_key}
            logits = network.apply({"params": params}, tiles.image, train=True, rngs=rngs)
            entropies = jax.vmap(weighted_cross_entropy)
            return mean_over_pixels(
                *entropies(cast(jax.Array, logits), tiles.labels, tiles.weights)
            )

        value, gradient = jax.value_and_grad(loss)(state.params)
        updates, opt_state = optimiser.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if freeze_contracting_path:
            params |= contracting_path(state.params)  # whatever momentum it had
        step, average = state.step + 1, state.average
        if average is not None:
            share = 1 / (1 + average_over * jnp.float32(step))
            average = optax.incremental_update(params, average, share)
        squares = [jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradient)]
        metrics = {"loss": value, "gradient_norm": jnp.sqrt(sum(squares))}
        return TrainState(step, params, opt_state, average), metrics

    return _on_auto_axes(train_step)


def _on_auto_axes(train_step):
    """The step with replicated results in a mesh whose axes are Explicit, JAX's default."""
    if not hasattr(jax.sharding, "auto_axes"):  # an older JAX, which has no such axes
        return train_step
    replicated = jax.sharding.auto_axes(train_step, out_sharding=jax.sharding.PartitionSpec())

    @wraps(train_step)
    def in_any_mesh(state, batch, key):
        # JAX 0.7 and 0.8 refuse `auto_axes` outside of a mesh.
        outside = jax.sharding.get_abstract_mesh().empty
        return (train_step if outside else replicated)(state, batch, key)

    return in_any_mesh

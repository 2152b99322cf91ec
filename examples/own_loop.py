"""The paper's training in a loop of your own, over NumPy arrays.

    python examples/own_loop.py

Network, weight map, augmentation, loss and optimiser are those of `train.py`; images, pictures and
the end of it are yours. 3 minutes on two CPU cores.
"""

import jax
import numpy as np

import unet_jax
from unet_jax.data.synthetic_em import synthetic_em
from unet_jax.grey_values import grey_value_statistics
from unet_jax.normalisation import normalise
from unet_jax.weight_map import weight_map


def train(images, cells, *, steps, width=8, tile_side=252):
    """Trains a network that tells cells from the membranes between them.

    Args:
      images: number [N, H, W].
      cells: int [N, H, W], the cell each pixel belongs to, 0 = membrane.
      steps: number of them; width: of the network.
      tile_side: pixels, side of its input.
    """
    network = unet_jax.UNet(width=width, depth=4)
    settings = unet_jax.OptimiserSettings(momentum_warmup_steps=steps // 4)
    optimiser = unet_jax.sgd(settings, steps=steps)
    step = unet_jax.make_train_step(network, optimiser, tile_side=tile_side)

    labels = (cells > 0).astype(np.int32)
    balance = unet_jax.class_weights(labels, classes=2)
    weigh = jax.jit(weight_map)
    normalised = [normalise(i[..., None], *grey_value_statistics(i[..., None])) for i in images]
    stack = unet_jax.Crop(
        image=np.stack(normalised),
        labels=labels,
        weights=np.stack([weigh(*both, balance) for both in zip(labels, cells, strict=True)]),
        size=np.tile(np.int32(images.shape[1:]), (len(images), 1)),
    )
    key = jax.random.key(0)
    state = unet_jax.create_train_state(key, network, optimiser)
    rng = np.random.default_rng(0)
    for number in range(1, steps + 1):
        chosen = rng.integers(len(images), size=1)  # the paper's batch: one large tile
        batch = jax.tree.map(lambda array, chosen=chosen: array[chosen], stack)
        state, metrics = step(state, batch, jax.random.fold_in(key, number))
        if number % 100 == 0:
            print(f"step {number}: loss {metrics['loss']:.3f}")
    return unet_jax.Model.of(network, state.params)


if __name__ == "__main__":
    pictures = [synthetic_em(i, height=256, width=256) for i in range(32)]
    images, cells = (np.stack(arrays) for arrays in zip(*pictures, strict=True))
    model = train(images[2:], cells[2:].astype(np.int32), steps=3000)
    cell = np.stack([unet_jax.predict_tiled(model, image)[..., 1] for image in images[:2]])
    print(f"pixels that are right: {np.mean((cell > 0.5) == (cells[:2] > 0)):.1%}")

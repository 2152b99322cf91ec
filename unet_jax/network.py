"""The network of the paper (Sect. 2, Fig. 1): a contracting and an expanding path, no padding."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from unet_jax.checked_settings import setting
from unet_jax.layers import Conv3x3, UpConv2x2, max_pool2x2, relu


def context(depth: int) -> int:
    """Pixels that an output pixel needs around it on each side: 92 at depth 5."""
    return 6 * 2 ** (depth - 1) - 4


def valid_input_sides(side: int, depth: int) -> list[int]:
    """The valid input sides nearest to `side`: itself, or the next ones below and above.

    A side is valid if every 2x2 max-pooling sees an even size: 16 k + 60 at depth 5, at least 188.
    """
    grid = 2 ** (depth - 1)
    smallest = 2 * context(depth) + min(grid, 4)
    if side <= smallest:
        return [smallest]
    below = side - (side - smallest) % grid
    return [side] if below == side else [below, below + grid]


def he_normal(incoming_nodes: int) -> nn.initializers.Initializer:
    """Gaussian with standard deviation sqrt(2 / N) for N incoming nodes of a neuron (Sect. 3).

    Not Flax's `he_normal`, which truncates the Gaussian.
    """
    normal = nn.initializers.normal(stddev=math.sqrt(2 / incoming_nodes))

    def init(key, shape, dtype):
        # The same numbers as of the shape itself, which takes XLA three times as long to compile.
        return normal(key, (math.prod(shape),), dtype).reshape(shape)

    return init


class UNet(nn.Module):
    """The U-Net of Fig. 1.

    Call it with float images [N, H, W, C]; it returns float32 logits
    [N, H - 2 context, W - 2 context, classes]: 572 -> 388 at depth 5. With `train=True` it needs a
    random key named `dropout`. Raises ValueError for a height or width that cannot be halved
    depth - 1 times.

    Attributes:
      width: channels of the first level; each lower level has twice as many.
      depth: number of levels, the lowest included.
      classes: number of output channels.
      dropout_rate: rate of the drop-out "at the end of the contracting path".
      dtype: the dtype that the convolutions compute in; the parameters are float32.

    Examples:
      >>> network = UNet(width=4, depth=3)
      >>> images = jnp.zeros((1, 60, 60, 1))
      >>> variables = network.init(jax.random.key(0), images)
      >>> network.apply(variables, images).shape
      (1, 20, 20, 2)
    """

    width: int = setting(64, at_least=1, at_most=4096)
    depth: int = setting(5, at_least=1, at_most=8)
    classes: int = setting(2, at_least=2, at_most=4096)
    dropout_rate: float = setting(0.5, at_least=0, below=1, wanted="at least 0 and below 1")
    dtype: Any = setting(
        "float32", one_of=("float32", "bfloat16"), wanted="auto, float32 or bfloat16"
    )

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:  # noqa: D102
        for name, side in zip(("height", "width"), images.shape[1:3], strict=True):
            nearest = valid_input_sides(side, self.depth)
            if side not in nearest:
                raise ValueError(
                    f"A U-Net of depth {self.depth} cannot take an input {name} of {side} pixels; "
                    f"the nearest valid ones: {', '.join(map(str, nearest))}."
                )

        def conv3x3_relu(x, channels, name):
            init = he_normal(9 * x.shape[-1])
            return relu(Conv3x3(channels, kernel_init=init, dtype=self.dtype, name=name)(x))

        def up_conv2x2(x, channels, name):
            # An output pixel sees one input pixel, so N is the number of input channels.
            init = he_normal(x.shape[-1])
            return UpConv2x2(channels, kernel_init=init, dtype=self.dtype, name=name)(x)

        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)

        x = images.astype(self.dtype)
        skips = []
        for level in range(1, self.depth + 1):
            channels = self.width * 2 ** (level - 1)
            x = conv3x3_relu(x, channels, f"contracting{level}_conv1")
            x = conv3x3_relu(x, channels, f"contracting{level}_conv2")
            if level >= self.depth - 1:
                x = dropout(x)
            if level < self.depth:
                skips.append(x)
                x = max_pool2x2(x)

        for level in range(self.depth - 1, 0, -1):
            channels = self.width * 2 ** (level - 1)
            x = up_conv2x2(x, channels, f"expanding{level}_up")
            x = jnp.concatenate([centre_crop(skips.pop(), x.shape[1:3]), x], axis=-1)
            x = conv3x3_relu(x, channels, f"expanding{level}_conv1")
            x = conv3x3_relu(x, channels, f"expanding{level}_conv2")

        init = he_normal(x.shape[-1])
        x = nn.Conv(self.classes, (1, 1), kernel_init=init, dtype=self.dtype, name="classes")(x)
        return x.astype(jnp.promote_types(jnp.float32, self.dtype))


def centre_crop(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The middle [N, height, width, C] of x [N, H, W, C] for `size` = (height, width)."""
    top, left = (x.shape[1] - size[0]) // 2, (x.shape[2] - size[1]) // 2
    return x[:, top : top + size[0], left : left + size[1], :]


def contracting_path(params: dict[str, Any]) -> dict[str, Any]:
    """The network's layers, or a dict with the same keys, that belong to its left half."""
    return {name: layer for name, layer in params.items() if name.startswith("contracting")}


@partial(jax.jit, static_argnums=(1, 2))
def init_params(key: jax.Array, network: UNet, channels: int):
    """Random float32 parameters for images with this many channels."""
    side = valid_input_sides(0, network.depth)[0]
    return network.init(key, jnp.zeros((1, side, side, channels), jnp.float32))["params"]

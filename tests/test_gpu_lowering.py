"""What can be seen of a GPU's training step without a GPU; see also `benchmarks.gpu_compile`."""

import re

import jax
import jax.numpy as jnp
import pytest

from unet_jax.augmentation import Crop
from unet_jax.network import UNet
from unet_jax.optimiser import sgd
from unet_jax.train_step import create_train_state, make_train_step

WIDTH, DEPTH, SIDE = 4, 2, 44
as_now = pytest.mark.skipif(
    jax.__version_info__ < (0, 10), reason="JAX before 0.10 writes more transposes and scatters"
)


@pytest.fixture(scope="module")
def lowered():
    network, optimiser = UNet(width=WIDTH, depth=DEPTH, dtype="bfloat16"), sgd(steps=1000)
    state = create_train_state(jax.random.key(0), network, optimiser)
    shape = 1, SIDE, SIDE
    batch = Crop(
        image=jnp.zeros((*shape, 1)),
        labels=jnp.zeros(shape, jnp.int32),
        weights=jnp.ones(shape),
        size=jnp.full((1, 2), SIDE),
    )
    step = make_train_step(network, optimiser, tile_side=SIDE)
    traced = step.trace(state, batch, jax.random.key(1))
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@as_now
def test_the_loss_has_no_scatter(lowered):
    assert "stablehlo.gather" in lowered  # of the augmentation, whose gradient nobody takes
    assert "scatter" not in lowered


def test_nothing_calls_or_waits_for_the_host(lowered):
    assert not re.findall(r"callback|infeed|outfeed|stablehlo\.(?:send|recv)", lowered)


@as_now
def test_no_image_is_transposed_but_in_the_up_convolutions(lowered):
    shapes = [
        sorted(map(int, shape.split("x")))
        for shape in re.findall(r"stablehlo\.transpose .* -> tensor<([\dx]+)x\w+>", lowered)
    ]
    up = [shape for shape in shapes if len(shape) == 6]
    assert len(up) == 2 * (DEPTH - 1)  # there and back
    # No kernel has more channels than this; what has fewer than `WIDTH` is of the augmentation.
    most = WIDTH * 2 ** (DEPTH - 1)
    assert not [s for s in shapes if len(s) == 4 and s[-2] > most and s[-3] >= WIDTH]


def test_the_gradient_of_each_relu_reads_its_output(lowered):
    """So that a GPU computes convolution, bias and ReLU in one kernel."""
    outputs = set(re.findall(r"(%[\w#]+) = stablehlo\.maximum .*bf16", lowered))
    compared = re.findall(r"stablehlo\.compare +NE, (%[\w#]+), .*bf16", lowered)
    assert len(compared) == 2 * (2 * DEPTH - 1)
    assert outputs.issuperset(compared)

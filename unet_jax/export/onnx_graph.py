"""The network as an ONNX graph, written node by node: nothing is traced.

The graph takes float32 [N, C, H, W], normalised, and gives the probabilities, float32
[N, classes, H, W]. It mirrors the image as `unet_jax.mirroring` does, so that output and input
have the same size, and gives the result of `predict_tiled` without averaging. It computes in
float32, even if the network was trained in bfloat16.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from unet_jax.model import Model
from unet_jax.network import UNet, context

# Old ones, so that old programs read it: 2020.
OPSET = 13
_IR_VERSION = 7
_END = 2**63 - 1


def size_step(depth: int) -> int:
    """The height and width of the graph's input must be multiples of this: 16 at depth 5."""
    return 2 ** (depth - 1)


def halo(depth: int) -> int:
    """The border, in pixels, that a tile shares with its neighbours: 96 at depth 5.

    The network's context of 92, rounded up to the next multiple of `size_step`: the origins of all
    tiles then lie on the max-pooling grid, and tiles give the same result as the whole image. With
    92 they differ by up to 0.36 (on the ISBI 2012 stack).
    """
    step = size_step(depth)
    return -(-context(depth) // step) * step


def onnx_graph(model: Model) -> onnx.ModelProto:
    """The model at its network's scale, without the grey value normalisation.

    Height and width must be multiples of `size_step` and larger than `halo`. For an ensemble, it
    gives the mean of the members' probabilities. The same parameters give the same bytes.
    """
    network = model.network
    constants: dict[str, np.ndarray] = {}
    nodes = []

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(name: str, values: ArrayLike) -> str:
        constants[name] = np.array(values)
        return name

    # The network's output for such a size, 16 k + 4 at depth 5, has a surplus at the end.
    before, after = context(network.depth), halo(network.depth)
    pads = constant("margins", [0, 0, before, before, 0, 0, after, after])
    mirrored = add("Pad", ["image", pads], "mirrored", mode="reflect")

    members = len(jax.tree.leaves(model.params)[0])
    outputs = []
    for i in range(members):
        params = jax.tree.map(lambda x, i=i: np.asarray(x[i]), model.params)
        outputs.append(_add_network(network, params, f"member{i}.", mirrored, add, constant))
    mean = add("Mean", outputs, "mean")
    ends = [before - after or _END] * 2
    limits = [constant("first", [0, 0]), constant("last", ends), constant("height_width", [2, 3])]
    add("Slice", [mean, *limits], "probabilities")

    def tensor(name: str, channels: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(
            name, TensorProto.FLOAT, ["batch", channels, "height", "width"]
        )

    graph = helper.make_graph(
        nodes,
        "unet",
        [tensor("image", model.channels)],
        [tensor("probabilities", network.classes)],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    written = helper.make_model(
        graph, opset_imports=[opset], ir_version=_IR_VERSION, producer_name="unet_jax"
    )
    onnx.checker.check_model(written, full_check=True)
    return written


def _add_network(
    network: UNet,
    params: Any,
    prefix: str,
    x: str,
    add: Callable[..., str],
    constant: Callable[[str, ArrayLike], str],
) -> str:
    """Adds the layers of `UNet.__call__` and soft-max; returns the name of the probabilities."""

    def convolution(
        kind: str, x: str, name: str, to_onnx: tuple[int, ...], **attributes: Any
    ) -> str:
        kernel = constant(f"{prefix}{name}.kernel", params[name]["kernel"].transpose(to_onnx))
        bias = constant(f"{prefix}{name}.bias", params[name]["bias"])
        return add(kind, [x, kernel, bias], prefix + name, **attributes)

    def conv_relu(x: str, name: str) -> str:
        # JAX has kernels [3, 3, C, D], ONNX [D, C, 3, 3].
        x = convolution("Conv", x, name, (3, 2, 0, 1))
        return add("Relu", [x], f"{prefix}{name}_relu")

    skips = []
    for level in range(1, network.depth + 1):
        x = conv_relu(x, f"contracting{level}_conv1")
        x = conv_relu(x, f"contracting{level}_conv2")
        if level < network.depth:
            skips.append(x)
            pool = dict(kernel_shape=[2, 2], strides=[2, 2])
            x = add("MaxPool", [x], f"{prefix}pool{level}", **pool)

    crop = 4  # pixels on each side of the lowest skip; the size of the image does not matter
    for level in range(network.depth - 1, 0, -1):
        x = convolution("ConvTranspose", x, f"expanding{level}_up", (2, 3, 0, 1), strides=[2, 2])
        limits = [
            constant(f"{prefix}crop{level}_first", [crop, crop]),
            constant(f"{prefix}crop{level}_last", [-crop, -crop]),
            constant(f"{prefix}crop{level}_axes", [2, 3]),
        ]
        skip = add("Slice", [skips.pop(), *limits], f"{prefix}crop{level}")
        x = add("Concat", [skip, x], f"{prefix}concat{level}", axis=1)
        x = conv_relu(x, f"expanding{level}_conv1")
        x = conv_relu(x, f"expanding{level}_conv2")
        crop = 2 * crop + 8

    x = convolution("Conv", x, "classes", (3, 2, 0, 1))
    return add("Softmax", [x], f"{prefix}softmax", axis=1)

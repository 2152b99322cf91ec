import dataclasses

import jax
import numpy as np
import pytest

from unet_jax.grey_values import grey_value_statistics
from unet_jax.model import Model
from unet_jax.network import UNet, context, init_params
from unet_jax.normalisation import normalise
from unet_jax.overlap_tile import predict_tiled

pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from unet_jax.export.onnx_graph import halo, onnx_graph, size_step  # noqa: E402


def random_model(width=2, depth=5, channels=1, classes=2, members=1, dtype="float32"):
    """With biases, which a new network has not."""
    network = UNet(width=width, depth=depth, classes=classes, dtype=dtype)
    members = [init_params(jax.random.key(seed), network, channels) for seed in range(members)]
    params = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: x if x.ndim > 2 else rng.normal(0, 0.1, x.shape).astype(np.float32), params
    )
    return Model(network, params, channels)


def session(model):
    graph = onnx_graph(model).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # some tests expect its errors
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def picture(height, width, channels=1):
    rng = np.random.default_rng(height)
    return rng.normal(100, 30, (height, width, channels)).astype(np.float32)


def as_input(image):
    return normalise(image, *grey_value_statistics(image)).transpose(2, 0, 1)[None]


@pytest.mark.parametrize(
    "kind",
    [
        dict(),
        dict(depth=1, width=4),
        dict(depth=2, channels=3, classes=4, members=3),
        dict(depth=3, dtype="bfloat16"),
    ],
    ids=str,
)
def test_equals_jax(kind):
    model = random_model(**kind)
    depth = model.network.depth
    step, least = size_step(depth), halo(depth) // size_step(depth) + 1
    onnx_session = session(model)
    # A network trained in bfloat16 is exported in float32.
    expecting = dataclasses.replace(model, network=model.network.clone(dtype="float32"))
    height, width = least * step, (least + 3) * step
    image = picture(height, width, model.channels)
    expected = predict_tiled(expecting, image if model.channels > 1 else image[..., 0])
    # The second of the batch is another image.
    batch = np.concatenate([as_input(image), as_input(image[::-1] ** 2)])
    probabilities = onnx_session.run(None, {"image": batch})[0]
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (2, model.network.classes, height, width)
    np.testing.assert_allclose(probabilities[0].transpose(1, 2, 0), expected, atol=1e-5)
    assert expected.std() > 0.01 and np.abs(probabilities[1] - probabilities[0]).max() > 0.01


def test_the_paper_s_sizes():
    assert size_step(5) == 16 and context(5) == 92 and halo(5) == 96


def test_same_parameters_same_bytes():
    graphs = {onnx_graph(random_model()).SerializeToString() for _ in range(2)}
    assert len(graphs) == 1


def test_tiles_with_the_halo_equal_the_whole_image():
    model = random_model(depth=4)
    onnx_session = session(model)
    image = as_input(picture(8 * 24, 8 * 24))
    whole = onnx_session.run(None, {"image": image})[0]

    def difference(border):
        part = slice(64 - border, 128 + border)
        tile = onnx_session.run(None, {"image": image[:, :, part, part]})[0]
        inner = tile[:, :, border:-border, border:-border]
        return np.abs(inner - whole[:, :, 64:128, 64:128]).max()

    assert difference(halo(4)) < 1e-5
    # Enough context, but an origin off the max-pooling grid.
    assert 60 > halo(4) > context(4) and difference(60) > 1e-3


@pytest.mark.parametrize("size", [(20, 24), (33, 40)])
def test_other_sizes_are_refused(size):
    onnx_session = session(random_model(depth=3))
    with pytest.raises(Exception, match="Pad|Concat"):
        onnx_session.run(None, {"image": np.zeros((1, 1, *size), np.float32)})

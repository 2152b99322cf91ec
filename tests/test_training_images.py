import threading
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_augmentation import PAPER
from tests.test_train_step import NETWORK, SCHEDULE, STEPS
from unet_jax import training_images
from unet_jax.augmentation import Crop, augment, reached_side
from unet_jax.example import IGNORED, Example
from unet_jax.grey_values import grey_value_statistics
from unet_jax.network import context
from unet_jax.normalisation import normalise
from unet_jax.optimiser import sgd
from unet_jax.train_step import create_train_state, make_train_step, tile_keys
from unet_jax.training_images import Draw, annotated_images, batch_indices, batches, take


def test_every_example_once_in_each_epoch_and_another_order_next():
    def epoch(number, seed=0):
        steps = range(number * 5, number * 5 + 5)
        return np.concatenate([batch_indices(s, 10, 2, seed) for s in steps]).tolist()

    assert sorted(epoch(0)) == sorted(epoch(1)) == list(range(10))
    assert epoch(0) != epoch(1) and epoch(0) != epoch(0, seed=1)
    # A batch may be larger than the data set and may straddle two epochs.
    assert sorted(np.concatenate([batch_indices(s, 2, 3, 0) for s in range(2)])) == [
        0,
        0,
        0,
        1,
        1,
        1,
    ]


def test_the_order_of_an_epoch_is_drawn_once(monkeypatch):
    def order(epoch):
        return np.random.default_rng([7, epoch]).permutation(5)

    expected = np.concatenate([order(2)[2:], order(3), order(4)[:2]])
    third = order(3).tolist()
    drawn, draw = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed) or draw(seed))
    assert batch_indices(4, 5, 3, 7).tolist() == expected[:3].tolist()
    assert drawn == [[7, 2]]
    assert [batch_indices(step, 5, 1, 7).item() for step in range(15, 20)] == third
    assert drawn == [[7, 2], [7, 3]]
    assert batch_indices(1, 5, 10, 7).tolist() == [*order(2), *order(3)]


def examples_of(*sizes, sparse=False):
    rng = np.random.default_rng(0)
    examples = []
    for height, width in sizes:
        labels = rng.integers(0, 2, (height, width)).astype(np.int32)
        if sparse:
            labels[rng.random(labels.shape) < 0.99] = IGNORED
        image = rng.integers(0, 255, (height, width, 2)).astype(np.uint8)
        examples.append(Example("", image, labels, np.zeros_like(labels)))
    weights = [rng.uniform(1, 5, e.labels.shape).astype(np.float32) for e in examples]
    return examples, weights


def test_strokes_on_some_of_the_images():
    """Tiles of the others teach nothing, whatever is in them."""
    examples, weights = examples_of((40, 50), (40, 50), sparse=True)
    examples[1] = examples[1]._replace(labels=np.full((40, 50), IGNORED, np.int32))
    places = annotated_images(examples, weights).places
    assert (examples[0].labels[tuple(np.asarray(places[0]).T)] != IGNORED).all()
    assert places[1].shape == places[0].shape and (np.asarray(places[1]) < (40, 50)).all()


def test_cells_in_a_small_part_of_an_image():
    """Tiles are taken where something is annotated."""
    examples, weights = examples_of((40, 50), sparse=True)
    examples[0].instances[examples[0].labels > 0] = 1
    places = np.asarray(annotated_images(examples, weights).places[0])
    assert (examples[0].labels[tuple(places.T)] != IGNORED).all()


@pytest.fixture(params=["device", "host"])
def held_on(request, monkeypatch):
    """Where the pixels are; on the host if the device has too little memory."""
    if request.param == "host":
        monkeypatch.setattr(training_images, "device_memory_bytes", lambda: 1000)
    return jax.Array if request.param == "device" else np.ndarray


SOME_KEYS = jax.random.split(jax.random.key(0), 3)


def test_the_memory_is_that_of_the_pixels_and_small_images_are_filled_up(held_on):
    examples, weights = examples_of((20, 30), (25, 10), (1, 1))
    images = annotated_images(examples, weights)
    pixels = [images.image, images.labels, images.weights]
    assert all(isinstance(a, held_on) for a in pixels)
    assert sum(a.nbytes for a in pixels) == (600 + 250 + 1) * 4 * (2 + 1 + 1)

    batch = take(images, np.array([1, 0, 2]), SOME_KEYS, PAPER, tile_side=20, context=4)
    assert batch.image.shape == (3, 25, 30, 2)
    assert batch.labels.shape == batch.weights.shape == (3, 25, 30)
    assert batch.size.shape == (3, 2) and batch.corner is None and batch.places is None
    assert np.array_equal(batch.size, [[25, 10], [20, 30], [1, 1]])
    for i, (n, (height, width)) in enumerate(zip((1, 0, 2), batch.size, strict=True)):
        image = normalise(examples[n].image, *grey_value_statistics(examples[n].image))
        assert np.array_equal(batch.image[i, :height, :width], image)
        assert np.array_equal(batch.labels[i, :height, :width], examples[n].labels)
        assert np.array_equal(batch.weights[i, :height, :width], weights[n])


def whole_images(examples, weights):
    """A batch of the images as they are, filled up at their end to the largest."""
    largest = np.max([e.labels.shape for e in examples], axis=0)
    images = [normalise(e.image, *grey_value_statistics(e.image)) for e in examples]
    filled_up = []
    for arrays in (images, [e.labels for e in examples], weights):
        filled = np.zeros((len(arrays), *largest, *arrays[0].shape[2:]), arrays[0].dtype)
        for whole, array in zip(filled, arrays, strict=True):
            whole[: len(array), : array.shape[1]] = array
        filled_up.append(filled)
    return Crop(*filled_up, np.array([e.labels.shape for e in examples], np.int32))


@pytest.mark.parametrize(
    ("elastic_pixels", "zoom_octaves", "shift", "sparse"),
    [(3.0, 0.0, 1.0, False), (0.0, 0.0, 3.0, False), (3.0, 0.0, 0.5, True), (1.0, 0.5, 1.0, True)],
)
def test_a_tile_of_a_part_is_that_of_the_whole_image(
    monkeypatch, elastic_pixels, zoom_octaves, shift, sparse
):
    """For the same key, bit for bit: inside, at the border and beyond it."""
    side, margin = 27, 6
    settings = replace(PAPER, elastic_pixels=elastic_pixels, zoom_octaves=zoom_octaves, shift=shift)
    examples, weights = examples_of((300, 90), (31, 210), (20, 20), (150, 150), sparse=sparse)
    indices = np.arange(400) % len(examples)
    keys = jax.random.split(jax.random.key(1), len(indices))
    part = partial(take, settings=settings, tile_side=side, context=margin)
    on_device = annotated_images(examples, weights)
    monkeypatch.setattr(training_images, "device_memory_bytes", lambda: 1000)
    on_host = annotated_images(examples, weights)
    batch, host_batch = part(on_device, indices, keys), part(on_host, indices, keys)
    assert isinstance(batch.image, jax.Array) and isinstance(host_batch.image, np.ndarray)
    jax.tree.map(np.testing.assert_array_equal, batch, host_batch)
    reached = reached_side(side, settings)
    assert batch.image.shape == (400, reached, reached, 2) and reached < 100
    assert (batch.corner >= 0).all()
    assert (batch.corner <= np.maximum(batch.size - reached, 0)).all()

    whole = whole_images(examples, weights)._replace(places=on_device.places)
    assert (whole.places is not None) == sparse
    cut = partial(augment, settings=settings, tile_side=side, context=margin)
    tiles = jax.jit(jax.vmap(cut))(keys, batch)
    one = jax.tree.map(jnp.asarray, whole)
    expected = jax.jit(jax.vmap(lambda key, n: cut(key, jax.tree.map(lambda a: a[n], one))))(
        keys, indices
    )
    # Older versions of JAX round the last digit of grey values otherwise.
    np.testing.assert_allclose(tiles.image, expected.image, rtol=0, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, tiles[1:], expected[1:])


def test_a_step_on_parts_is_a_step_on_whole_images():
    """Images of which a tile reaches a part train to the same bits as if they were there whole."""
    examples, weights = examples_of((200, 120), (90, 170))
    optimiser = sgd(SCHEDULE, steps=STEPS)
    settings = replace(PAPER, elastic_pixels=2.0)
    step = make_train_step(NETWORK, optimiser, tile_side=36, augmentation=settings)
    key = jax.random.key(3)
    batch = take(
        annotated_images(examples, weights),
        np.array([0, 1]),
        tile_keys(key, 2),
        settings,
        tile_side=36,
        context=context(2),
    )
    assert batch.labels.shape == (2, 88, 88)
    results = []
    for data in (batch, whole_images(examples, weights)):
        state = create_train_state(jax.random.key(0), NETWORK, optimiser, 2)
        results.append(jax.device_get(step(state, data, key)))
    jax.tree.map(np.testing.assert_array_equal, *results)


def draws(steps, looked_at):
    """Of so many steps; notes each when it is asked for."""
    for step in steps:
        looked_at.append(step)
        yield Draw(step, np.array([step % 2]), jax.random.fold_in(jax.random.key(5), step))


def batches_of(images, steps, looked_at):
    return batches(images, draws(steps, looked_at), tile_side=20, context=4)


def test_batches_are_cut_one_step_ahead(monkeypatch):
    monkeypatch.setattr(training_images, "device_memory_bytes", lambda: 1000)
    images = annotated_images(*examples_of((100, 120), (90, 130)))
    looked_at, threads = [], threading.active_count()
    steps = batches_of(images, range(1, 6), looked_at)
    assert looked_at == [] and threading.active_count() == threads
    for number, (drawn, batch) in enumerate(steps, start=1):
        assert drawn.step == number and all(
            isinstance(x, jax.Array) for x in jax.tree.leaves(batch)
        )
        assert looked_at == list(range(1, min(number + 1, 5) + 1))
        expected = take(images, drawn.indices, tile_keys(drawn.key, 1), tile_side=20, context=4)
        jax.tree.map(np.testing.assert_array_equal, batch, expected)
    assert number == 5 and threading.active_count() == threads
    assert list(batches_of(images, (), [])) == []


@pytest.mark.parametrize("end", ["closed", "dropped"])
def test_batches_that_are_given_up_leave_no_thread(monkeypatch, end):
    monkeypatch.setattr(training_images, "device_memory_bytes", lambda: 1000)
    images = annotated_images(*examples_of((100, 120), (90, 130)))
    threads = threading.active_count()
    steps = batches_of(images, range(1000), [])
    next(steps)
    assert threading.active_count() == threads + 1
    if end == "closed":
        steps.close()
    else:
        del steps
    assert threading.active_count() == threads


def test_an_error_of_the_thread_is_raised_where_the_batch_is_asked_for(monkeypatch):
    monkeypatch.setattr(training_images, "device_memory_bytes", lambda: 1000)
    images = annotated_images(*examples_of((100, 120), (90, 130)))
    threads = threading.active_count()
    original = training_images.take

    def failing(images, indices, *rest, **options):
        if indices[0] == 1:
            raise OSError("the disk is gone")
        return original(images, indices, *rest, **options)

    monkeypatch.setattr(training_images, "take", failing)
    steps = batches_of(images, range(5), [])
    assert next(steps)[0].step == 0
    with pytest.raises(OSError, match="the disk is gone"):
        next(steps)
    assert threading.active_count() == threads

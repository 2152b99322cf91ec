"""A network that learns from strokes while they are painted.

Two things go on in turns. Whenever a stroke has been painted, a new last layer is fitted to the
features under the strokes, which takes a fraction of a second. In between, the whole network is
trained on the strokes as always. What is shown is the best of all so far, judged by strokes that
are left out of both, once each class has such a stroke.

Few strokes are no fair sample of an image: as much is painted of a rare class as of a frequent one,
and nothing of what is obvious. So each class counts as much as the network that it began with finds
of it, and some of the unpainted pixels count as what that network takes them for (in a fit of the
last layer, as what the network that is fitted takes them for); unless the network that it began
with is wrong on the strokes too often, or knows other classes.

Nor do few strokes say much about which network is the better one: the best of many is the luckiest.
So the network in training is tried after 50 steps, then after twice as many each time. Where the
one that it began with is trusted, what is tried are the weights half way between the two, which
keep more of what that one knows of all that is not painted (Wortsman et al. 2022, Robust
fine-tuning of zero-shot models).
"""

import dataclasses
from collections.abc import Hashable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unet_jax.configuration import Configuration, TrainSettings
from unet_jax.errors import InputError
from unet_jax.example import IGNORED, Example
from unet_jax.live.blocks import Part, blocks_that_count, sampled_pixels
from unet_jax.live.features import Features
from unet_jax.live.last_layer import LastLayer, Pixels, entropy, fitted
from unet_jax.live.strokes import Painted, left_out
from unet_jax.model import Model
from unet_jax.network import UNet, valid_input_sides
from unet_jax.train_step import TrainState
from unet_jax.training_loop import Progress, train

_STEPS_AT_A_TIME = 10
# Steps to the first trial of the network in training after a stroke; twice as many to the next.
_STEPS_TO_TRIAL = 50
# So many painted pixels count for the last layer, of all images together, drawn at random.
_MOST_PAINTED = 10_000
# Unpainted pixels count together as much as this number of painted ones for the last layer; and for
# the whole network this share of those of which a class is at least this probable.
_COUNT_AS = 3000
_SHARE, _SURE = 0.4, 0.9
# Of the strokes of each class, averaged, on which the first network must be right to be trusted.
_TRUSTED = 0.7
# No class counts for less than this share of the pixels.
_LEAST_SHARE = 0.02
# A network that is trusted is changed with care.
_LEARNING_RATE, _LEARNING_RATE_TRUSTED, _WARMUP_STEPS = 1e-3, 3e-4, 50
_TILE_SIDE, _AVERAGE_OVER = 172, 0.3
_TRAIN, _LEFT_OUT = 0, 1  # of the strokes


class LiveTraining:
    """A network that learns from strokes; everything is to be called by one thread at a time.

        live = LiveTraining(unet_jax.load("nuclei"))
        live.paint({"first": Painted(image, strokes)})
        while live.steps < 1000:
            if live.work():
                shown = live.probabilities("first", image, rows, columns)

    Attributes:
      is_ready: whether it can say anything about the classes that are painted.
      steps: how many steps the network in the background has been trained for.
    """

    def __init__(self, start: Model, classes: int | None = None):
        """Begins with a network, whose last layer is replaced if it has other classes.

        Args:
          start: a single network of scale 1.
          classes: how many there are; by default those of `start`.

        Raises:
          InputError: an ensemble, or a network that sees images at another scale.
        """
        if jax.tree.leaves(start.params)[0].shape[0] > 1:
            raise InputError("This is a cross-validation; begin with one of its networks, a fold.")
        if start.scale != 1:
            raise InputError(
                f"This network sees images at {start.scale:g} times their resolution; to paint, "
                "begin with one of scale 1."
            )
        classes = start.network.classes if classes is None else classes
        self._knows_classes = classes == start.network.classes
        if not self._knows_classes:
            kernel = np.zeros((start.network.width, classes), np.float32)
            start = _with(start, LastLayer(kernel, np.zeros(classes, np.float32)))
        self._painted: dict[Hashable, Painted] = {}
        self._roles: dict[Hashable, np.ndarray] = {}
        self._blocks: dict[Hashable, list[Part]] = {}
        self._counts = np.zeros((2, classes), np.int64)
        self._sampled: dict[Hashable, np.ndarray] = {}
        self._start = self._body = Features(start)
        self._layer = _last_layer(start)
        self._configuration = _configuration(start)
        # Their states are alike, so that either continues where the other has stopped.
        self._optimiser, self._optimiser_trusted = (
            optax.adam(optax.warmup_constant_schedule(0.0, rate, _WARMUP_STEPS))
            for rate in (_LEARNING_RATE, _LEARNING_RATE_TRUSTED)
        )
        # Copies, as training uses them up; in NumPy and compiled as a whole, as time counts here.
        params, average = (jax.tree.map(lambda x: np.array(x[0]), start.params) for _ in range(2))
        moments = jax.jit(self._optimiser.init)(params)
        self._state = TrainState(jnp.int32(0), params, moments, average)
        self._training: Iterator[Progress] | None = None
        self._shares = np.full(classes, 1 / classes)
        self._is_new = self._trusts_start = False
        self.is_ready = self._knows_classes
        self.steps = 0
        self._steps_to_trial = self._next_trial = _STEPS_TO_TRIAL

    @property
    def shown(self) -> Model:
        """The best network so far, for `predict_tiled`."""
        return _with(self._body.model, self._layer)

    def probabilities(
        self, name: Hashable, image: np.ndarray, rows: slice, columns: slice
    ) -> np.ndarray:
        """Of the classes, by what is shown, for a part of an image, float32 [h, w, classes].

        Args:
          name: of the image, as in `paint`.
          image: [H, W] or [H, W, C].
          rows: with a start and a stop.
          columns: likewise.
        """
        return self._layer.probabilities(self._body.part(name, image, rows, columns))

    def paint(self, painted: Mapping[Hashable, Painted]) -> None:
        """Takes the strokes as they are now, on all images that have any."""
        self._painted = {n: p for n, p in painted.items() if (p.strokes != IGNORED).any()}
        self._roles = {
            name: left_out(strokes, self._roles.get(name, np.zeros((2, *strokes.shape), bool)))
            for name, (_, strokes) in self._painted.items()
        }
        self._blocks = blocks_that_count(self._painted, self._roles)
        self._counts = self._counted()
        self._is_new = True

    def work(self) -> bool:
        """Does the next piece of work, of about a second; returns whether the shown has changed."""
        if self._is_new:
            self._is_new = False
            self._training = None
            self._steps_to_trial = _STEPS_TO_TRIAL
            self._next_trial = min(self._next_trial, self.steps + _STEPS_TO_TRIAL)
            if not self._painted:
                return False
            self._sampled = sampled_pixels(self._blocks)
            self._trusts_start = self._knows_classes and self._start_is_right() > _TRUSTED
            self._shares = self._shares_found()
            return self._improve(self._body)
        if not self._has_all_classes(_TRAIN):
            return False
        if self._training is None:
            self._training = self._begin()
        for _ in range(_STEPS_AT_A_TIME):
            progress = next(self._training)
        self._state, self.steps = progress.state, progress.step
        if self.steps < self._next_trial:
            return False
        self._steps_to_trial *= 2
        self._next_trial = self.steps + self._steps_to_trial
        if not self._has_all_classes(_LEFT_OUT):
            return False
        return self._improve(Features(self._tried(progress.model())))

    def left_out_entropy(self) -> float:
        """Of what is shown, in nats, over the strokes left out; 0 while a class has none."""
        return entropy(self._layer, self._judged(self._body)) if self._painted else 0.0

    def _tried(self, trained: Model) -> Model:
        """The network in training, or half way to it from the one that it began with."""
        if not self._trusts_start:
            return trained
        both = self._start.model.params, trained.params
        return dataclasses.replace(trained, params=jax.tree.map(lambda x, y: (x + y) / 2, *both))

    def _improve(self, body: Features) -> bool:
        """Fits last layers to the strokes and shows the best, unless what is shown is better."""
        painted, judged = self._pixels(body, _TRAIN), self._judged(body)
        own = _last_layer(body.model)
        if not len(painted.weights):
            return False
        if self._trusts_start:
            every = _together(painted, self._unpainted_pixels(body, own))
            layers = [fitted(own, every), own]
        elif self._has_all_classes(_TRAIN):
            layers = [fitted(own, painted)]
        else:
            return False
        best = min(layers, key=lambda layer: entropy(layer, judged))
        if len(judged.weights) and not entropy(best, judged) < self.left_out_entropy():
            return False
        self._body, self._layer, self.is_ready = body, best, True
        return True

    def _begin(self) -> Iterator[Progress]:
        """The steps of training on the strokes as they are now."""
        examples = []
        for name, (image, strokes) in self._painted.items():
            labels = np.where(self._roles[name][_TRAIN], strokes, IGNORED).astype(np.int32)
            labels_of = [labels]
            if self._trusts_start:
                labels_of.append(np.where(strokes == IGNORED, self._taken_for(name), labels))
            no_cells = np.zeros(labels.shape, np.int32)
            examples += [
                Example(str(name), image, labels, no_cells)
                for labels in labels_of
                if (labels != IGNORED).any()
            ]
        return train(
            examples,
            self._configuration,
            optimiser=self._optimiser_trusted if self._trusts_start else self._optimiser,
            state=self._state,
            class_weight=self._class_weights(self._counts[_TRAIN]),
        )

    def _start_is_right(self) -> float:
        """The share of the strokes' pixels, averaged over the classes that are painted."""
        features, classes = self._strokes(self._start, _TRAIN)
        found = _last_layer(self._start.model).probabilities(features).argmax(-1)
        shares = [(found == label)[classes == label].mean() for label in np.unique(classes)]
        return float(np.mean(shares)) if shares else 0.0

    def _strokes(self, body: Features, role: int) -> tuple[np.ndarray, np.ndarray]:
        """Features [N, width] and classes [N] of the pixels that are trained on, or left out."""
        features = [np.empty((0, body.model.network.width), np.float32)]
        classes = [np.empty(0, np.int32)]
        for name, parts in self._blocks.items():
            image, strokes = self._painted[name]
            counts = np.zeros(strokes.shape, bool)
            for part in parts:
                counts[part] = self._roles[name][role][part]
            places, most = np.argwhere(counts), _MOST_PAINTED // len(self._blocks)
            if len(places) > most:
                places = np.random.default_rng(0).choice(places, most, replace=False)
            features.append(body.at(name, image, places))
            classes.append(strokes[tuple(places.T)])
        return np.concatenate(features), np.concatenate(classes)

    def _pixels(self, body: Features, role: int) -> Pixels:
        """The same for a fit."""
        features, classes = self._strokes(body, role)
        targets = np.eye(body.model.network.classes, dtype=np.float32)[classes]
        count = np.bincount(classes, minlength=targets.shape[-1])
        return Pixels(features, targets, self._class_weights(count)[classes])

    def _judged(self, body: Features) -> Pixels:
        """The pixels that are left out; none while they do not hold all classes."""
        pixels = self._pixels(body, _LEFT_OUT)
        return pixels if self._has_all_classes(_LEFT_OUT) else Pixels(*(x[:0] for x in pixels))

    def _unpainted_pixels(self, body: Features, layer: LastLayer) -> Pixels:
        """Some of the pixels around the strokes, with what the layer takes them for."""
        unpainted = {
            name: at[self._painted[name].strokes[tuple(at.T)] == IGNORED]
            for name, at in self._sampled.items()
        }
        features = np.concatenate(
            [body.at(name, self._painted[name].image, at) for name, at in unpainted.items()]
        )
        weights = np.full(len(features), _COUNT_AS / max(len(features), 1), np.float32)
        return Pixels(features, layer.probabilities(features), weights)

    def _taken_for(self, name: Hashable) -> np.ndarray:
        """What the first network takes some of the pixels around the strokes for, int32 [H, W]."""
        image, strokes = self._painted[name]
        rng, layer = np.random.default_rng(0), _last_layer(self._start.model)
        labels = np.full(strokes.shape, IGNORED, np.int32)
        for part in self._blocks.get(name, ()):
            probabilities = layer.probabilities(self._start.part(name, image, *part))
            counts = rng.random(probabilities.shape[:2]) < _SHARE
            counts &= probabilities.max(-1) > _SURE
            labels[part] = np.where(counts, probabilities.argmax(-1), IGNORED)
        return labels

    def _class_weights(self, count: np.ndarray) -> np.ndarray:
        """How much a pixel of each class counts: its share of the images by that of the strokes."""
        weights = self._shares * count.sum() / np.maximum(count, 1)
        return weights.astype(np.float32)

    def _shares_found(self) -> np.ndarray:
        """The share of the pixels around the strokes that is of each class, as far as known."""
        if not self._trusts_start:
            return np.full(len(self._shares), 1 / len(self._shares))
        layer = _last_layer(self._start.model)
        found = [
            layer.probabilities(self._start.at(name, self._painted[name].image, at))
            for name, at in self._sampled.items()
        ]
        return np.maximum(np.concatenate(found).mean(0), _LEAST_SHARE)

    def _counted(self) -> np.ndarray:
        """How many pixels of each class are trained on, and left out, int [2, classes]."""
        counts = np.zeros_like(self._counts)
        for name, (_, strokes) in self._painted.items():
            for count, role in zip(counts, self._roles[name], strict=True):
                count += np.bincount(strokes[role], minlength=len(count))
        return counts

    def _has_all_classes(self, role: int) -> bool:
        return bool((self._counts[role] > 0).all())


def _together(*pixels: Pixels) -> Pixels:
    return Pixels(*map(np.concatenate, zip(*pixels, strict=True)))


def _last_layer(model: Model) -> LastLayer:
    layer = model.params["classes"]
    return LastLayer(np.asarray(layer["kernel"])[0, 0, 0], np.asarray(layer["bias"])[0])


def _with(model: Model, layer: LastLayer) -> Model:
    """The network with another last layer."""
    params = {"kernel": jnp.asarray(layer.kernel)[None, None, None], "bias": layer.bias[None]}
    network = model.network.clone(classes=len(layer.bias))
    return dataclasses.replace(
        model, network=network, params=model.params | {"classes": params}, record=None
    )


def _configuration(start: Model) -> Configuration:
    """For training on strokes, in the background."""
    network = start.network
    return Configuration(
        model=network,
        class_names=tuple(f"class {label}" for label in range(network.classes)),
        train=TrainSettings(tile_side=tile_side(network), average_over=_AVERAGE_OVER),
    )


def tile_side(network: UNet) -> int:
    """Pixels, of the tiles on which a network learns from strokes."""
    return valid_input_sides(_TILE_SIDE, network.depth)[-1]

"""The optimiser of the paper (Sect. 3), SGD with a high momentum, and Adam for short runs."""

from dataclasses import dataclass

import jax.numpy as jnp
import optax

from unet_jax.checked_settings import check, setting
from unet_jax.errors import InputError


@dataclass(frozen=True)
class OptimiserSettings:
    """How far each step goes; the paper gives only the momentum.

    Attributes:
      kind: "sgd", or "adam" with its usual momenta, which learns faster and ignores the momenta
        given here.
      momentum: the final momentum; the paper's remembers a hundred steps.
      initial_momentum: if it starts at 0.9, the network leaves the first plateau far sooner.
      momentum_warmup_steps: the number of steps over which the momentum rises.
      peak_learning_rate: for SGD, as if the momentum were the final one from the start.
      warmup_steps: the number of steps over which the learning rate rises.
    """

    kind: str = setting("sgd", one_of=("sgd", "adam"))
    momentum: float = setting(0.99, at_least=0, below=1)
    initial_momentum: float = setting(0.9, at_least=0, below=1)
    momentum_warmup_steps: int = setting(2000, at_least=1)
    peak_learning_rate: float = setting(2e-3, above=0)
    warmup_steps: int = setting(100, at_least=0)

    def __post_init__(self):
        """Raises InputError for a value that makes no sense."""
        check(self)


def create_optimiser(
    settings: OptimiserSettings, *, steps: int | None = None
) -> optax.GradientTransformation:
    """`sgd` or `adam`, as the settings say."""
    return adam(settings, steps=steps) if settings.kind == "adam" else sgd(settings, steps=steps)


def adam(
    settings: OptimiserSettings = OptimiserSettings(peak_learning_rate=1e-3),
    *,
    steps: int | None = None,
) -> optax.GradientTransformation:
    """Adam, whose state holds `learning_rate`; it rises and falls as in `sgd`.

    Args and errors as for `sgd`.
    """
    rate = _rise_and_fall(settings, steps)
    return optax.inject_hyperparams(optax.adam)(learning_rate=lambda step: rate(jnp.float32(step)))


def sgd(
    settings: OptimiserSettings = OptimiserSettings(), *, steps: int | None = None
) -> optax.GradientTransformation:
    """SGD with momentum (Sect. 3), whose state holds `learning_rate` and `momentum`.

    A momentum of 0.99 remembers a hundred steps, too many while the network changes fast. So
    1 - momentum falls geometrically from 1 - initial_momentum over the first momentum_warmup_steps,
    and the learning rate with it: their ratio, the rate at which a constant gradient moves the
    parameters, rises linearly over warmup_steps and then falls as a cosine to 0. The momentum
    accumulates gradients before the learning rate multiplies them.

    Args:
      settings: see `OptimiserSettings`.
      steps: of the whole run, more than warmup_steps; None if its end is not known: the ratio then
        stays at its peak.

    Raises:
      InputError: the warm-up would take all steps.
    """
    nominal = _rise_and_fall(settings, steps)
    final = 1 - settings.momentum
    ratio = (1 - settings.initial_momentum) / final

    def friction(step):
        """1 - momentum, in units of the final one."""
        return ratio ** (1 - jnp.minimum(step / settings.momentum_warmup_steps, 1))

    # A quotient of integers would be a float64 where JAX computes in 64 bits elsewhere.
    def learning_rate(step):
        step = jnp.float32(step)
        return nominal(step) * friction(step)

    def momentum(step):
        return 1 - final * friction(jnp.float32(step))

    return optax.inject_hyperparams(optax.sgd)(learning_rate=learning_rate, momentum=momentum)


def _rise_and_fall(settings: OptimiserSettings, steps: int | None) -> optax.Schedule:
    """Linearly to the peak, then as a cosine to 0; without an end it stays at the peak."""
    warmup, peak = settings.warmup_steps, settings.peak_learning_rate
    if steps is None:
        return optax.warmup_constant_schedule(0.0 if warmup else peak, peak, warmup)
    if steps <= warmup:
        raise InputError(f"warmup_steps must be below steps = {steps}, not {warmup}.")
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps)

"""The optimiser of the paper (Sect. 3): stochastic gradient descent with a high momentum."""

import jax.numpy as jnp
import optax


def create_optimiser(
    *,
    steps: int,
    peak_learning_rate: float,
    warmup_steps: int,
    momentum: float,
    initial_momentum: float,
    momentum_warmup_steps: int,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """SGD with momentum (Sect. 3), and its learning rate at a step.

    The paper's momentum of 0.99 remembers a hundred steps, too many while the network changes fast.
    So 1 - momentum falls geometrically from 1 - initial_momentum over the first
    momentum_warmup_steps, and the learning rate with it: their ratio, the rate at which a constant
    gradient moves the parameters, rises linearly over warmup_steps and then falls as a cosine to 0.
    The momentum accumulates gradients before the learning rate multiplies them.

    Args:
      steps: of the whole run.
      peak_learning_rate: as if the momentum were the final one from the start.
      warmup_steps: of the learning rate, below `steps`.
      momentum: the final one, in [0, 1).
      initial_momentum: in [0, 1).
      momentum_warmup_steps: at least 1.
    """
    nominal = optax.warmup_cosine_decay_schedule(0.0, peak_learning_rate, warmup_steps, steps)
    ratio = (1 - initial_momentum) / (1 - momentum)

    def friction(step):
        """1 - momentum, in units of the final one."""
        return ratio ** (1 - jnp.minimum(step / momentum_warmup_steps, 1))

    # A quotient of integers would be a float64 where JAX computes in 64 bits elsewhere.
    def learning_rate(step):
        step = jnp.float32(step)
        return nominal(step) * friction(step)

    def momentum_at(step):
        return 1 - (1 - momentum) * friction(jnp.float32(step))

    sgd = optax.inject_hyperparams(optax.sgd)(learning_rate=learning_rate, momentum=momentum_at)
    return sgd, learning_rate

"""Adam with the weight decay of PyTorch's Adam, and schedules of the learning rate."""

import optax


def adam_with_l2(
    learning_rate: optax.ScalarOrSchedule, weight_decay: float
) -> optax.GradientTransformation:
    """Adam whose decay is an L2 term of the gradient, as `torch.optim.Adam(weight_decay=...)`.

    `optax.adamw` decays parameters separately from the adaptive step; with Adam the two differ.
    (Paper, Algorithm 1, line 14; Algorithm 3, line 13.)

    Args:
      learning_rate: a number, or a schedule over steps.
      weight_decay: factor of the parameters added to their gradient.
    """
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(learning_rate, eps=1e-8))


def step_decay(
    learning_rate: float, steps: int, decay_at: float, *, decay_factor: float
) -> optax.Schedule:
    """A constant rate, multiplied by `decay_factor` after the fraction `decay_at` of all steps.

    The paper has 1e-4, and 1e-5 after 66,500 of 70,000 steps. It counts steps, not epochs.
    """
    return optax.piecewise_constant_schedule(learning_rate, {int(steps * decay_at): decay_factor})


def warmup_cosine(learning_rate: float, steps: int, warmup_steps: int) -> optax.Schedule:
    """Rises from 0 over `warmup_steps`, then falls along a cosine to a hundredth of the peak."""
    return optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, min(warmup_steps, steps // 2), steps, learning_rate / 100
    )


def warmup_stable_decay(
    learning_rate: float, steps: int, warmup_steps: int, *, decay_steps: int
) -> optax.Schedule:
    """Rises from 0 over `warmup_steps`, is constant, then falls to a hundredth over `decay_steps`.

    It does not depend on `steps` until the decay begins. A run can therefore be branched at any
    step: a decay of a few thousand steps gives the result of a shorter run, and the run itself can
    continue.
    """
    warmup = min(warmup_steps, steps // 2)
    decay = min(decay_steps, steps - warmup)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, learning_rate, warmup),
            optax.constant_schedule(learning_rate),
            optax.cosine_decay_schedule(learning_rate, max(decay, 1), 0.01),
        ],
        [warmup, steps - decay],
    )

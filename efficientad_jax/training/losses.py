"""The losses of one training step (paper, Algorithm 1, lines 12-32)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from efficientad_jax.errors import InputError

_Features = Float[Array, "n h w c"]

# XLA selects the largest by 32-bit indices.
_MOST_FEATURES = 2**31 - 1


class Losses(NamedTuple):
    """The losses of one step, as scalars, or of several, as arrays. A step minimizes their sum.

    A loss that is switched off is 0.

    Attributes:
      hard: L_hard, between student and teacher where they differ most.
      penalty: L_penalty, on the student's features of pretraining images.
      autoencoder: L_AE, between autoencoder and teacher.
      student_autoencoder: L_STAE, between the student's second half and the autoencoder.
    """

    hard: Float[Array, "*steps"]
    penalty: Float[Array, "*steps"]
    autoencoder: Float[Array, "*steps"]
    student_autoencoder: Float[Array, "*steps"]

    @property
    def total(self) -> Float[Array, "*steps"]:
        """L_total (Algorithm 1, line 32)."""
        return self.hard + self.penalty + self.autoencoder + self.student_autoencoder


def mean_squared_difference(a: _Features, b: _Features) -> Float[Array, ""]:
    """Mean of `(a - b)^2` over all elements."""
    return jnp.square(a - b).mean()


def pretraining_penalty(student: _Features) -> Float[Array, ""]:
    """Mean square of the student's first half on pretraining images (Algorithm 1, line 21).

    It keeps the student from imitating the teacher beyond the normal images.
    """
    return jnp.square(student).mean()


def student_teacher_loss(teacher: _Features, student: _Features, p_hard: float) -> Float[Array, ""]:
    """L_hard of the normalized teacher and the student's first half (Algorithm 1, lines 13-16)."""
    return hard_feature_loss(jnp.square(teacher - student), p_hard)


def hard_feature_loss(
    squared_differences: Float[Array, "..."], p_hard: float = 0.999
) -> Float[Array, ""]:
    """Mean of the squared differences at or above their `p_hard`-quantile.

    Paper, section 3.2 and Algorithm 1, lines 15-17.

    Args:
      squared_differences: `(T - S)^2`, any shape; the quantile is taken over all elements.
      p_hard: in [0, 1); 0 gives the plain mean, that is no mining.

    Returns:
      A scalar whose gradient is non-zero only for the mined elements.

    Raises:
      ValueError: `p_hard` lies outside [0, 1).
    """
    if p_hard == 0:
        return squared_differences.mean()
    # Materialized once: a value that is computed again inside another fusion could round to the
    # other side of the quantile.
    squared_differences = jax.lax.optimization_barrier(squared_differences)
    hard = hard_feature_mask(squared_differences, p_hard)
    return jnp.where(hard, squared_differences, 0.0).sum() / hard.sum()


def hard_feature_mask(
    squared_differences: Float[Array, "..."], p_hard: float = 0.999
) -> Bool[Array, "..."]:
    """Marks the elements at or above the `p_hard`-quantile of all elements.

    The quantile is interpolated linearly between order statistics. They are found by selecting the
    largest elements (one in a thousand at 0.999), without sorting all of them.

    Raises:
      ValueError: `p_hard` lies outside [0, 1).
      InputError: there are more than 2^31 - 1 elements.
    """
    if not 0 <= p_hard < 1:
        raise ValueError(f"p_hard = {p_hard}: expected a number in [0, 1)")
    values = jax.lax.stop_gradient(squared_differences).reshape(-1)
    if values.size > _MOST_FEATURES:
        raise InputError(
            f"training: {values.size} features in a step, expected at most {_MOST_FEATURES}; lower "
            "config.train.batch_size, config.model.input_height or config.model.input_width"
        )
    position = p_hard * (values.size - 1)
    below = math.floor(position)
    largest, _ = jax.lax.top_k(values, values.size - below)
    # Without a barrier XLA merges the slices below into the selection and, on CPU, no longer
    # recognizes it: it sorts all values, which takes 70 times as long.
    largest = jax.lax.optimization_barrier(largest)
    lower = largest[-1]
    upper = largest[-2] if largest.size > 1 else lower
    quantile = lower + (position - below) * (upper - lower)
    return squared_differences >= quantile

"""The losses of one training step (paper, Algorithm 1, lines 12-32)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from efficientad_jax.errors import InputError

_Features = Float[Array, "n h w c"]
# Outputs that count for nothing, the same of all images or of each.
_Ignored = Bool[Array, "_n h w"]

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


def mean_squared_difference(
    a: _Features, b: _Features, ignored: _Ignored | None = None
) -> Float[Array, ""]:
    """Mean of `(a - b)^2` over all elements, or over those of the outputs that count."""
    squared_differences = jnp.square(a - b)
    return squared_differences.mean() if ignored is None else _mean(squared_differences, ignored)


def pretraining_penalty(student: _Features) -> Float[Array, ""]:
    """Mean square of the student's first half on pretraining images (Algorithm 1, line 21).

    It keeps the student from imitating the teacher beyond the normal images.
    """
    return jnp.square(student).mean()


def student_teacher_loss(
    teacher: _Features, student: _Features, p_hard: float, *, ignored: _Ignored | None = None
) -> Float[Array, ""]:
    """L_hard of the normalized teacher and the student's first half (Algorithm 1, lines 13-16).

    `ignored` is True on outputs that are not mined.
    """
    squared_differences = jnp.square(teacher - student)
    if ignored is None:
        return hard_feature_loss(squared_differences, p_hard)
    if p_hard == 0:
        return _mean(squared_differences, ignored)
    squared_differences = jax.lax.optimization_barrier(squared_differences)
    hard = hard_feature_mask_where(squared_differences, p_hard, ignored)
    # A crop may hold no output that counts.
    return jnp.where(hard, squared_differences, 0.0).sum() / jnp.maximum(hard.sum(), 1)


def _mean(squared_differences: _Features, ignored: _Ignored) -> Float[Array, ""]:
    """The mean over the outputs that count, 0 if none does."""
    counted = jnp.where(ignored[..., None], 0.0, squared_differences)
    return counted.sum() / jnp.maximum(_count(squared_differences, ignored), 1)


def _count(features: _Features, ignored: _Ignored) -> Int[Array, ""]:
    """The number of features of the outputs that count."""
    shape = features.shape
    return jnp.broadcast_to(~ignored, shape[:3]).sum() * shape[3]


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
    _check(p_hard, squared_differences.size)
    values = jax.lax.stop_gradient(squared_differences).reshape(-1)
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


def hard_feature_mask_where(
    squared_differences: Float[Array, "n h w c"], p_hard: float, ignored: Bool[Array, "_n h w"]
) -> Bool[Array, "n h w c"]:
    """`hard_feature_mask` of only the outputs that count: it marks no other.

    How many they are is not known when the program is compiled: the part of a crop that is ignored
    depends on its place. The quantile's rank is counted from the largest element, where float32 is
    exact enough.

    Raises:
      ValueError: `p_hard` lies outside [0, 1).
      InputError: there are more than 2^31 - 1 elements.
    """
    _check(p_hard, squared_differences.size)
    values = jax.lax.stop_gradient(squared_differences)
    counted = jnp.broadcast_to(~ignored[..., None], values.shape)
    values = jnp.where(counted, values, -1.0).reshape(-1)
    most = values.size - math.floor(p_hard * (values.size - 1))
    largest, _ = jax.lax.top_k(values, most)
    largest = jax.lax.optimization_barrier(largest)
    count = _count(squared_differences, ignored)
    rank = (1 - p_hard) * jnp.maximum(count - 1, 0).astype(jnp.float32)
    above = jnp.clip(rank.astype(jnp.int32), 0, most - 1)
    below = jnp.minimum(above + 1, most - 1)
    upper, lower = largest[above], largest[below]
    quantile = upper - (rank - above) * (upper - lower)
    return counted & (squared_differences >= quantile)


def _check(p_hard: float, features: int) -> None:
    if not 0 <= p_hard < 1:
        raise ValueError(f"p_hard = {p_hard}: expected a number in [0, 1)")
    if features > _MOST_FEATURES:
        raise InputError(
            f"training: {features} features in a step, expected at most {_MOST_FEATURES}; lower "
            "config.train.batch_size, config.model.input_height or config.model.input_width"
        )

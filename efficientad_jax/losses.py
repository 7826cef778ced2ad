"""The losses of one training step (paper, Algorithm 1, lines 12-32)."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from efficientad_jax.hard_feature_loss import hard_feature_loss

_Features = Float[Array, "n h w c"]


class Losses(NamedTuple):
    """What a step minimises: the sum. A loss that is switched off is 0.

    Scalars of one step, or arrays of those of several.

    Attributes:
      hard: L_hard, student against teacher where they differ most.
      penalty: L_penalty, of the student's features of pretraining images.
      autoencoder: L_AE, autoencoder against teacher.
      student_autoencoder: L_STAE, student's second half against autoencoder.
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
    """L_hard of the normalised teacher and the student's first half (Algorithm 1, lines 13-16)."""
    return hard_feature_loss(jnp.square(teacher - student), p_hard)

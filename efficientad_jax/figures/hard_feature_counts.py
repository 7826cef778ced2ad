"""What the hard feature loss picks of an image (paper, Figure 4)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree, UInt8

from efficientad_jax.networks.layers import float32_features
from efficientad_jax.networks.model import Networks
from efficientad_jax.networks.preprocessing import normalize_images, to_unit_range
from efficientad_jax.training.losses import hard_feature_mask


def count_hard_features(
    networks: Networks,
    teacher_params: PyTree,
    student_params: PyTree,
    images: UInt8[np.ndarray, "n h w 3"],
    p_hard: float = 0.999,
) -> Int[np.ndarray, "n oh ow"]:
    """How many features of each patch the loss would send a gradient to.

    The quantile is that of one image, as in training with batches of 1.

    Args:
      networks: their modules.
      teacher_params: of the normalised teacher.
      student_params: of the student.
      images: RGB at the networks' input size.
      p_hard: mining factor; 0 picks all features.

    Returns:
      From 0 to the teacher's `out_channels`.
    """
    half = networks.teacher.out_channels

    @jax.jit
    def of_one(
        teacher_params: PyTree, student_params: PyTree, image: UInt8[Array, "h w 3"]
    ) -> Int[Array, "oh ow"]:
        x = normalize_images(to_unit_range(image))[None]
        teacher = float32_features(networks.teacher, teacher_params, x)
        student = float32_features(networks.student, student_params, x, slice(0, half))
        return hard_feature_mask(jnp.square(teacher - student)[0], p_hard).sum(-1)

    return np.stack([of_one(teacher_params, student_params, image) for image in images])

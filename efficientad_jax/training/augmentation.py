"""Random augmentations, inside jit (paper, Algorithm 1, lines 18-20 and 24-28)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Luma weights of ITU-R BT.601, as in torchvision's `rgb_to_grayscale`.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def grayscale(images: Float[Array, "*batch 3"]) -> Float[Array, "*batch 1"]:
    """The luma of RGB images, with one channel."""
    return (images * _LUMA).sum(-1, keepdims=True)


def jitter(key: jax.Array, images: Float[Array, "n h w 3"]) -> Float[Array, "n h w 3"]:
    """Changes brightness, contrast or saturation: one of them, drawn for each image.

    The changes are torchvision's `adjust_brightness`, `adjust_contrast` and `adjust_saturation`,
    with a factor from U(0.8, 1.2) (paper, Algorithm 1, lines 24-27).

    Args:
      key: a random key.
      images: float32 RGB in [0, 1].
    """

    def jitter_image(key: jax.Array, image: Array) -> Array:
        which, amount = jax.random.split(key)
        factor = jax.random.uniform(amount, minval=0.8, maxval=1.2)
        gray = grayscale(image)
        # Each change blends with another image: black, the mean gray, or the gray image. Selecting
        # that image takes half of the time of a branch, because vmap computes all branches.
        choice = jax.random.randint(which, (), 0, 3)
        other = jnp.stack([jnp.zeros_like(gray), jnp.full_like(gray, gray.mean()), gray])[choice]
        return jnp.clip(factor * image + (1 - factor) * other, 0.0, 1.0)

    return jax.vmap(jitter_image)(jax.random.split(key, images.shape[0]), images)


def random_grayscale(
    key: jax.Array, images: Float[Array, "n h w 3"], probability: float
) -> Float[Array, "n h w 3"]:
    """Removes the color of each image with this probability (Algorithm 1, line 19: 0.3)."""
    is_gray = jax.random.bernoulli(key, probability, (images.shape[0], 1, 1, 1))
    return jnp.where(is_gray, grayscale(images), images)

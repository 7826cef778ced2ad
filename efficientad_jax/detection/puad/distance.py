"""The distance of an image's mean features from those of the training images.

A map shows where an image is anomalous. An image may also be anomalous as a whole, with no place
that is. PUAD (Sugawara and Imamura, "PUAD: Frustratingly Simple Method for Robust Anomaly
Detection", ICIP 2024) describes an image by the mean over all outputs of the student's features
that imitate the teacher, and takes the Mahalanobis distance from those of the training images. The
covariance is that of Ledoit and Wolf ("A well-conditioned estimator for large-dimensional
covariance matrices", 2004), as there are often fewer images than features.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32

from efficientad_jax.errors import DivergenceError, InputError

# Eigenvalues of a covariance below this fraction of the largest one are rounding errors.
_NEGLIGIBLE = 1e-10


class PuadStatistics(NamedTuple):
    """Statistics of the mean features of the training images.

    Attributes:
      mean: of the images' mean features.
      whitening: a deviation from `mean` times this matrix has the Mahalanobis distance as length.
    """

    mean: Float[Array | np.ndarray, " c"]
    whitening: Float[Array | np.ndarray, "c c"]


def abstract_statistics(channels: int) -> PuadStatistics:
    """Shapes and dtypes for so many features."""
    return PuadStatistics(
        jax.ShapeDtypeStruct((channels,), np.float32),  # pyright: ignore[reportArgumentType]
        jax.ShapeDtypeStruct((channels, channels), np.float32),  # pyright: ignore[reportArgumentType]
    )


def fit_statistics(means: Float[np.ndarray, "n c"]) -> PuadStatistics:
    """Fits the statistics to the mean features of training images, in float64.

    Raises:
      InputError: all images have the same mean features.
      DivergenceError: a feature is not finite.
    """
    from sklearn.covariance import LedoitWolf  # Slow to import, and not needed for detection.

    if not np.isfinite(means).all():
        raise DivergenceError(
            "PUAD: the student's features of the training images are not finite; train again with "
            "a lower config.train.learning_rate"
        )
    if not np.ptp(means, axis=0).any():
        raise InputError(
            f"PUAD: the mean features of all {len(means)} training images are the same, expected "
            "them to vary; give other images, or leave config.calibration.puad off"
        )
    fitted = LedoitWolf().fit(means.astype(np.float64))
    variances, directions = np.linalg.eigh(fitted.covariance_)
    counts = variances > _NEGLIGIBLE * variances[-1]
    deviations = np.sqrt(np.where(counts, variances, np.inf))
    whitening = (directions / deviations).astype(np.float32)
    return PuadStatistics(fitted.location_.astype(np.float32), whitening)


def output_weights(ignored: Bool[np.ndarray, "m oh ow"]) -> Float32[np.ndarray, "m oh ow"]:
    """The weights of `mean_features` for the mean over all outputs but the ignored ones.

    Args:
      ignored: True on the outputs that do not count, see `networks.ignored`; never on all.
    """
    counts = ~np.asarray(ignored)
    return (counts / counts.sum((1, 2), keepdims=True)).astype(np.float32)


def mean_features(
    features: Float[Array, "n oh ow c"], weights: Float[Array | np.ndarray, "m oh ow"] | None = None
) -> Float[Array, "n c"]:
    """The mean of each feature over the outputs of an image.

    Args:
      features: of the student, those that imitate the teacher.
      weights: of the outputs, the same for all images where `m` is 1; those of an image sum to 1,
        or those of all tiles of an image together. None for the same weight everywhere.
    """
    if weights is None:
        return features.mean((1, 2))
    return (features * jnp.asarray(weights)[..., None]).sum((1, 2))


def distances(statistics: PuadStatistics, means: Float[Array, "n c"]) -> Float[Array, " n"]:
    """The Mahalanobis distances of mean features."""
    deviations = means - jnp.asarray(statistics.mean)
    # As in `inference.raw_maps`, not in fewer bits on an accelerator.
    white = jnp.matmul(deviations, jnp.asarray(statistics.whitening), precision="highest")
    return jnp.sqrt(jnp.square(white).sum(-1))


def distances_on_host(
    statistics: PuadStatistics, means: Float[np.ndarray, "n c"]
) -> Float[np.ndarray, " n"]:
    """`distances` without a compiled program."""
    mean, whitening = (np.asarray(array, np.float64) for array in statistics)
    return np.linalg.norm((means - mean) @ whitening, axis=-1)

"""Mean and standard deviation of every channel over any number of feature maps.

Computing E[x^2] - E[x]^2 in float32 loses the variance of a channel whose mean is large. Here each
batch is centered on its own mean, and Chan's formula merges the batches in float64.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64

# A channel whose standard deviation is below this fraction of the mean one carries no signal:
# dividing by it would amplify rounding noise.
_NEGLIGIBLE = 1e-4


class ChannelStatistics(NamedTuple):
    """Statistics of `c` channels, taken over all images and positions.

    Attributes:
      mean: `[c]`.
      std: `[c]`, positive; 1 for channels without variance.
      constant_channels: indices of the channels without variance.
    """

    mean: Float32[np.ndarray, " c"]
    std: Float32[np.ndarray, " c"]
    constant_channels: tuple[int, ...]


class _Moments(NamedTuple):
    values: int
    mean: Float64[np.ndarray, " c"]
    squares: Float64[np.ndarray, " c"]  # sum of squared deviations from `mean`


@jax.jit
def _batch_moments(
    features: Float[Array, "n h w c"],
) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    features = features.astype(jnp.float32)
    mean = features.mean((0, 1, 2))
    return mean, jnp.square(features - mean).sum((0, 1, 2))


def _merge(a: _Moments, b: _Moments) -> _Moments:
    """Merges two sets of values (Chan, Golub and LeVeque, 'Updating formulae', 1979)."""
    count = a.values + b.values
    delta = b.mean - a.mean
    mean = a.mean + delta * (b.values / count)
    squares = a.squares + b.squares + delta**2 * (a.values * b.values / count)
    return _Moments(count, mean, squares)


def channel_statistics(batches: Iterable[Float[Array, "n h w c"]]) -> ChannelStatistics:
    """Computes statistics over all batches.

    This is lines 5-13 of Algorithm 1 and lines 3-11 of Algorithm 3 in the paper.

    Args:
      batches: feature maps, channels last; batches may differ in `n`, `h` and `w`.

    Raises:
      ValueError: there is no batch.
    """
    total = None
    for features in batches:
        mean, squares = _batch_moments(features)
        moments = _Moments(
            features.size // features.shape[-1],
            np.asarray(mean, np.float64),
            np.asarray(squares, np.float64),
        )
        total = moments if total is None else _merge(total, moments)
    if total is None:
        raise ValueError("channel statistics: found no feature maps, expected at least one batch")
    std = np.sqrt(total.squares / total.values)
    constant = std <= _NEGLIGIBLE * std.mean()
    return ChannelStatistics(
        mean=total.mean.astype(np.float32),
        std=np.where(constant, 1.0, std).astype(np.float32),
        constant_channels=tuple(np.flatnonzero(constant).tolist()),
    )

"""Mean and standard deviation of every channel over any number of feature maps.

E[x^2] - E[x]^2 in one float32 pass loses the variance of a channel whose mean is large. Here each
batch is centred on its own mean and batches are merged by Chan's formula in float64.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64

# A channel whose standard deviation is below this part of the average one carries no signal;
# dividing by it would blow its rounding noise up.
_NEGLIGIBLE = 1e-4


class ChannelStatistics(NamedTuple):
    """Statistics of `c` channels, taken over all images and positions.

    Attributes:
      mean: `[c]`.
      std: `[c]`, positive: that of channels without variance is replaced by 1.
      constant_channels: indices of the channels where it was replaced.
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
    """Chan, Golub and LeVeque, 'Updating formulae', 1979."""
    count = a.values + b.values
    delta = b.mean - a.mean
    mean = a.mean + delta * (b.values / count)
    squares = a.squares + b.squares + delta**2 * (a.values * b.values / count)
    return _Moments(count, mean, squares)


def channel_statistics(batches: Iterable[Float[Array, "n h w c"]]) -> ChannelStatistics:
    """Statistics over all batches (paper, Algorithm 1, lines 5-13; Algorithm 3, lines 3-11).

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
        raise ValueError("channel statistics of no feature maps at all")
    std = np.sqrt(total.squares / total.values)
    constant = std <= _NEGLIGIBLE * std.mean()
    return ChannelStatistics(
        mean=total.mean.astype(np.float32),
        std=np.where(constant, 1.0, std).astype(np.float32),
        constant_channels=tuple(np.flatnonzero(constant).tolist()),
    )

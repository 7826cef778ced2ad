"""Anomaly maps on one scale, by quantiles of validation maps (paper, section 3.3)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class MapQuantiles(NamedTuple):
    """Values of a map on normal images: `a` becomes 0 and `b` becomes 0.1."""

    a: float
    b: float


def map_quantiles(
    maps: Float[np.ndarray, "..."] | Sequence[Float[np.ndarray, "..."]],
    q_a: float = 0.9,
    q_b: float = 0.995,
) -> MapQuantiles:
    """Exact quantiles over all pixels of all maps (Algorithm 1, lines 45-46).

    Interpolated linearly between order statistics, in float64, whatever the number of pixels.

    Args:
      maps: anomaly maps of the validation images, an array or a sequence of arrays.
      q_a: which quantile becomes 0, in [0, 1].
      q_b: which quantile becomes 0.1, in [0, 1], above `q_a`.

    Raises:
      ValueError: there are no pixels, one is not finite, or the quantiles are not in order.
    """
    if not 0 <= q_a < q_b <= 1:
        raise ValueError(f"quantiles q_a = {q_a}, q_b = {q_b}: expected 0 <= q_a < q_b <= 1")
    arrays = [maps] if isinstance(maps, np.ndarray) else maps
    pixels = np.concatenate([np.ravel(m) for m in arrays]) if len(arrays) else np.empty(0)
    if not pixels.size:
        raise ValueError("quantiles of no pixels at all")
    if not np.isfinite(pixels).all():
        raise ValueError("quantiles of maps that hold NaN or infinity")
    # np.quantile rounds q to the maps' float32, which is off by whole ranks beyond 2^24 pixels.
    ranks = [q * (pixels.size - 1) for q in (q_a, q_b)]
    needed = sorted({r for rank in ranks for r in (math.floor(rank), math.ceil(rank))})
    pixels.partition(needed)
    a, b = (_interpolate(pixels, rank) for rank in ranks)
    return MapQuantiles(a, b)


def _interpolate(ordered: np.ndarray, rank: float) -> float:
    lower, upper = float(ordered[math.floor(rank)]), float(ordered[math.ceil(rank)])
    return lower + (rank - math.floor(rank)) * (upper - lower)


def check_quantiles(quantiles: MapQuantiles) -> None:
    """Checks that maps can be normalized.

    Raises:
      ValueError: the quantiles are equal, as those of constant maps are.
    """
    if quantiles.b <= quantiles.a:
        raise ValueError(
            f"map quantiles {quantiles.a:g} and {quantiles.b:g}: expected b > a; "
            "the validation maps they come from are constant"
        )


def normalize_map(anomaly_map: Float[Array, "..."], quantiles: MapQuantiles) -> Float[Array, "..."]:
    """`0.1 (M - q_a) / (q_b - q_a)` (Algorithm 2, lines 8-9).

    Raises:
      ValueError: the quantiles are equal.
    """
    check_quantiles(quantiles)
    return 0.1 * (jnp.asarray(anomaly_map) - quantiles.a) / (quantiles.b - quantiles.a)

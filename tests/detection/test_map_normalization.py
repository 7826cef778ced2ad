"""Quantiles are exact, also for counts at which float32 ranks and random subsets are not."""

import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax import MapQuantiles, map_quantiles, normalize_map


def sorted_quantile(values, q):
    ordered = np.sort(np.ravel(values)).astype(np.float64)
    rank = q * (ordered.size - 1)
    low = int(np.floor(rank))
    high = min(low + 1, ordered.size - 1)
    return ordered[low] + (rank - low) * (ordered[high] - ordered[low])


@pytest.mark.parametrize("shape", [(3, 24, 24), (1, 1, 2), (1,)])
def test_quantiles_are_those_of_sorting_everything(shape):
    maps = np.random.default_rng(0).random(shape).astype(np.float32)
    found = map_quantiles(maps)
    assert found.a == pytest.approx(sorted_quantile(maps, 0.9), rel=1e-12)
    assert found.b == pytest.approx(sorted_quantile(maps, 0.995), rel=1e-12)


def test_maps_of_different_sizes_count_by_their_pixels():
    rng = np.random.default_rng(1)
    maps = [rng.random((4, 5)).astype(np.float32), rng.random((30, 40)).astype(np.float32)]
    everything = np.concatenate([m.ravel() for m in maps])
    assert map_quantiles(maps).a == pytest.approx(sorted_quantile(everything, 0.9), rel=1e-12)
    assert maps[0].shape == (4, 5)


@pytest.mark.slow
def test_exact_beyond_two_to_the_24_values():
    count = 2**24 + 12345
    # Bit patterns of positive floats are ordered as the integers they are made from.
    start = np.float32(0.5).view(np.int32)
    values = (start + np.random.default_rng(2).permutation(count).astype(np.int32)).view(np.float32)
    exact = [sorted_quantile(values, q) for q in (0.9, 0.995)]
    assert map_quantiles(values) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(
    ("maps", "quantiles", "message"),
    [
        (np.ones((2, 2), np.float32), (0.9, 0.9), "q_a < q_b"),
        (np.ones((2, 2), np.float32), (0.5, 1.5), "q_a < q_b"),
        (np.array([1.0, np.nan], np.float32), (0.9, 0.995), "NaN"),
        ([], (0.9, 0.995), "no pixels"),
    ],
)
def test_what_has_no_quantiles_is_refused(maps, quantiles, message):
    with pytest.raises(ValueError, match=message):
        map_quantiles(maps, *quantiles)


def test_normalization_sends_a_to_0_and_b_to_a_tenth():
    normalized = normalize_map(jnp.array([2.0, 4.0, 3.0, 10.0]), MapQuantiles(2.0, 4.0))
    np.testing.assert_allclose(normalized, [0.0, 0.1, 0.05, 0.4], rtol=1e-6)


def test_constant_maps_are_not_divided_by():
    with pytest.raises(ValueError, match="constant"):
        normalize_map(jnp.ones(3), MapQuantiles(1.0, 1.0))

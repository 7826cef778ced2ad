"""Statistics against float64 over all values at once, on data where one float32 pass fails."""

import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax.networks.channel_statistics import channel_statistics


def features():
    rng = np.random.default_rng(0)
    scale, mean = np.array([0.5, 3.0, 0.05]), np.array([4000.0, -2.0, 300.0])
    return (rng.standard_normal((9, 6, 5, 3)) * scale + mean).astype(np.float32)


def test_batches_merge_to_the_statistics_of_all():
    x = features()
    found = channel_statistics(jnp.asarray(part) for part in np.split(x, [1, 5]))
    exact = x.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(found.std, exact.std((0, 1, 2)), rtol=1e-3)
    assert found.constant_channels == ()


def test_mean_of_squares_less_square_of_mean_would_fail():
    x = features().reshape(-1, 3)
    one_pass = (x**2).mean(0, dtype=np.float32) - x.mean(0, dtype=np.float32) ** 2
    exact = x.astype(np.float64).var(0)
    assert np.abs(one_pass / exact - 1).max() > 0.5


def test_a_channel_without_variance_is_reported_and_not_divided_by():
    x = features()
    x[..., 1] = 7.0
    found = channel_statistics([jnp.asarray(x)])
    assert found.constant_channels == (1,)
    assert found.std[1] == 1.0


def test_no_features_are_refused():
    with pytest.raises(ValueError, match="no feature maps"):
        channel_statistics([])

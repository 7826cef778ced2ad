"""Mean features and their Mahalanobis distance, against scikit-learn and slow versions."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.covariance import EmpiricalCovariance, LedoitWolf

from efficientad_jax import InputError
from efficientad_jax.detection.puad.distance import (
    distances,
    distances_on_host,
    fit_statistics,
    mean_features,
    output_weights,
)
from efficientad_jax.errors import DivergenceError


def correlated(images: int, features: int, seed: int = 0) -> np.ndarray:
    """Mean features of images, of different variances and not independent."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).normal(size=(features, features)) / features
    return (rng.normal(size=(images, features)) @ mixing + 3).astype(np.float32)


def slow_distances(train: np.ndarray, test: np.ndarray) -> list[float]:
    """Mahalanobis distances by the formulas of Ledoit and Wolf (2004, section 3.3), one by one."""
    n, p = train.shape
    mean = train.mean(0)
    centered = train - mean
    sample = sum(np.outer(x, x) for x in centered) / n
    scale = np.trace(sample) / p
    distance = np.sum((sample - scale * np.eye(p)) ** 2) / p
    error = sum(np.sum((np.outer(x, x) - sample) ** 2) for x in centered) / p / n**2
    shrinkage = min(error, distance) / distance
    covariance = shrinkage * scale * np.eye(p) + (1 - shrinkage) * sample
    inverse = np.linalg.inv(covariance)
    return [float(np.sqrt((x - mean) @ inverse @ (x - mean))) for x in test]


@pytest.mark.parametrize(("images", "features"), [(12, 40), (60, 8)])
def test_distances_are_those_of_scikit_learn_and_of_the_formulas(images, features) -> None:
    train, test = correlated(images, features), correlated(7, features, seed=1)
    statistics = fit_statistics(train)
    expected = np.sqrt(LedoitWolf().fit(train.astype(np.float64)).mahalanobis(test))
    np.testing.assert_allclose(distances(statistics, jnp.asarray(test)), expected, rtol=1e-4)
    np.testing.assert_allclose(distances_on_host(statistics, test), expected, rtol=1e-4)
    slow = slow_distances(train.astype(np.float64), test.astype(np.float64))
    np.testing.assert_allclose(distances_on_host(statistics, test), slow, rtol=1e-4)


def test_many_independent_images_need_no_shrinkage() -> None:
    rng = np.random.default_rng(0)
    train, test = (rng.normal(size=(n, 6)) * [1, 2, 3, 4, 5, 6] for n in (20_000, 5))
    expected = np.sqrt(EmpiricalCovariance().fit(train).mahalanobis(test))
    np.testing.assert_allclose(distances_on_host(fit_statistics(train), test), expected, rtol=0.01)


def test_means_are_over_the_outputs_that_count() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, 4, 5, 6)).astype(np.float32)
    outputs = jnp.asarray(features)
    ignored = rng.random((3, 4, 5)) < 0.4
    slow = np.zeros((3, 6))
    for image in range(3):
        values = [
            features[image, row, column]
            for row in range(4)
            for column in range(5)
            if not ignored[image, row, column]
        ]
        slow[image] = np.mean(values, axis=0)
    np.testing.assert_allclose(mean_features(outputs, output_weights(ignored)), slow, atol=1e-6)
    same = mean_features(outputs, output_weights(ignored[:1]))
    np.testing.assert_allclose(np.asarray(same)[0], slow[0], atol=1e-6)
    assert not np.allclose(np.asarray(same)[1], slow[1], atol=1e-3)
    np.testing.assert_allclose(mean_features(outputs), features.mean((1, 2)), atol=1e-6)


def test_features_that_tell_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="of all 12 training images are the same"):
        fit_statistics(np.ones((12, 3), np.float32))
    broken = correlated(12, 3)
    broken[4, 1] = np.nan
    with pytest.raises(DivergenceError, match="are not finite"):
        fit_statistics(broken)

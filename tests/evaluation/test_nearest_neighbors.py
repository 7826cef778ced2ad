"""Nearest neighbors against scikit-learn's; the command on a separable folder."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from efficientad_jax.evaluation.nearest_neighbors import nearest_neighbor_scores


def describe(image):
    """Four channels of very different scales, at a quarter of the size."""
    x = image.astype(jnp.float32).reshape(1, 8, 4, 8, 4, 3).mean((2, 4))
    return jnp.concatenate([x * jnp.array([1.0, 10.0, 0.1]), x[..., :1] ** 2], -1)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (n, 32, 32, 3), np.uint8) for n in (6, 4))
    return train, test


@pytest.mark.parametrize("spacing", [1, 2])
def test_distances_are_those_of_scikit_learn(images, spacing):
    train, test = images
    scores = nearest_neighbor_scores(describe, train, test, spacing=spacing)
    rows = [
        np.concatenate([np.asarray(describe(i[None]))[:, ::spacing, ::spacing] for i in part])
        for part in (train, test)
    ]
    mean, std = (f(rows[0].astype(np.float64), axis=(0, 1, 2)) for f in (np.mean, np.std))
    bank, queries = (((r - mean) / std).reshape(len(r), -1, 4) for r in rows)
    model = NearestNeighbors(n_neighbors=1).fit(bank.reshape(-1, 4))
    for i, patches in enumerate(queries):
        distances = np.sort(model.kneighbors(patches)[0][:, 0])
        np.testing.assert_allclose(scores.maximum[i], distances[-1], rtol=1e-4)
        np.testing.assert_allclose(scores.mean_of_largest[i], distances[-5:].mean(), rtol=1e-4)


def test_the_bank_is_a_choice_of_so_many_patches_by_the_seed(images):
    train, test = images
    few = [nearest_neighbor_scores(describe, train, test, patches=9, seed=s) for s in (0, 0, 1)]
    np.testing.assert_array_equal(few[0].maximum, few[1].maximum)
    assert (few[0].maximum != few[2].maximum).any()
    whole = nearest_neighbor_scores(describe, train, test)
    assert (whole.maximum <= few[0].maximum).all()


def test_an_image_of_the_bank_has_no_distance(images):
    train, _ = images
    scores = nearest_neighbor_scores(describe, train, train[:2])
    np.testing.assert_allclose(scores.maximum, 0, atol=2e-3)

"""The projection of features onto fewer targets, against scikit-learn's PCA."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from efficientad_jax.distillation.target_projection import (
    fit_projection,
    project,
    save_projection,
    saved_projection,
)

FEATURES, TARGETS = 12, 5


@pytest.fixture
def batches():
    """Correlated features whose means and scales differ by powers of ten."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((FEATURES, FEATURES)) * np.linspace(2, 0.1, FEATURES)[:, None]
    rows = rng.standard_normal((3, 1, 20, 30, FEATURES)) @ mixing
    rows = rows * np.logspace(-2, 2, FEATURES) + np.linspace(-500, 500, FEATURES)
    return rows.astype(np.float32)


def project_all(projection, batches):
    arrays = (projection.mean, projection.std, projection.matrix)
    rows = [np.asarray(project(arrays, jnp.asarray(batch))) for batch in batches]
    return np.concatenate(rows).reshape(-1, rows[0].shape[-1])


def test_as_many_features_as_targets_are_only_normalized(batches):
    projection = fit_projection(map(jnp.asarray, batches), FEATURES, "average", seed=0)
    assert projection.matrix is None
    assert projection.explained == 1.0
    rows = batches.reshape(-1, FEATURES).astype(np.float64)
    expected = StandardScaler().fit_transform(rows)
    np.testing.assert_allclose(project_all(projection, batches), expected, atol=2e-3)


@pytest.mark.parametrize("reduction", ["average", "pca"])
def test_targets_have_zero_mean_and_unit_variance(batches, reduction):
    targets = project_all(
        fit_projection(map(jnp.asarray, batches), TARGETS, reduction, seed=0), batches
    )
    np.testing.assert_allclose(targets.mean(0), 0, atol=2e-3)
    np.testing.assert_allclose(targets.std(0), 1, atol=2e-3)


def test_pca_keeps_the_subspace_of_scikit_learn(batches):
    projection = fit_projection(map(jnp.asarray, batches), TARGETS, "pca", seed=0)
    normalized = StandardScaler().fit_transform(batches.reshape(-1, FEATURES).astype(np.float64))
    model = PCA(TARGETS).fit(normalized)
    assert projection.explained == pytest.approx(model.explained_variance_ratio_.sum(), abs=1e-4)
    # The directions differ, but they span the same space.
    basis, _ = np.linalg.qr(projection.matrix.astype(np.float64))
    angles = np.linalg.svd(basis.T @ model.components_.T)[1]
    np.testing.assert_allclose(angles, 1, atol=1e-5)


def test_the_rotation_spreads_the_variance_over_the_targets(batches):
    """The first principal component is not a single target."""
    projection = fit_projection(map(jnp.asarray, batches), TARGETS, "pca", seed=0)
    normalized = StandardScaler().fit_transform(batches.reshape(-1, FEATURES).astype(np.float64))
    first = PCA(1).fit(normalized).components_[0]
    shares = (first @ projection.matrix) ** 2
    assert shares.max() < 0.9 * shares.sum()


def test_a_saved_projection_is_read_back(batches, tmp_path):
    assert saved_projection(tmp_path) is None
    for count, reduction in ((FEATURES, "average"), (TARGETS, "pca")):
        projection = fit_projection(map(jnp.asarray, batches), count, reduction, seed=0)
        save_projection(tmp_path, projection)
        again = saved_projection(tmp_path)
        assert again.explained == projection.explained
        for ours, theirs in zip(again[:3], projection[:3], strict=True):
            assert (ours is None and theirs is None) or (ours == theirs).all()

"""The sum of two standardized scores, and which validation images it is standardized by."""

import numpy as np
import pytest

from efficientad_jax import InputError
from efficientad_jax.detection.puad.standardization import add_distances, sets_scale, standardize


def test_the_sum_is_that_of_the_standardized_scores_on_the_scale_of_the_maps() -> None:
    rng = np.random.default_rng(0)
    scores = rng.gamma(2.0, 0.05, 30).astype(np.float32)
    distances = rng.normal(20, 3, 30).astype(np.float32)
    found = standardize(scores, distances)
    part, rest = slice(0, None, 3), [i for i in range(30) if i % 3]
    literal = (scores - scores[part].mean()) / scores[part].std() + (
        distances - distances[part].mean()
    ) / distances[part].std()
    expected = scores[part].mean() + scores[part].std() * literal
    np.testing.assert_allclose(found.combined, expected[rest], rtol=1e-5)
    assert found.plain == tuple(scores.tolist())
    # The images of the threshold have no part in the scale.
    other = scores.copy()
    other[rest] += 5
    assert standardize(other, distances).scale == found.scale
    new = add_distances(np.array([0.2]), np.array([found.scale.distance_mean]), found.scale)
    assert new == pytest.approx(0.2)


def test_every_third_image_sets_the_scale() -> None:
    assert sets_scale(10).tolist() == [True, False, False] * 3 + [True]


def test_too_few_or_equal_images_are_refused() -> None:
    values = np.arange(9, dtype=np.float32)
    with pytest.raises(InputError, match="PUAD: 9 validation images, expected at least 10"):
        standardize(values, values)
    values = np.arange(12, dtype=np.float32)
    with pytest.raises(InputError, match="distances of 4 validation images are all the same"):
        standardize(values, np.ones(12, np.float32))

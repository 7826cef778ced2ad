import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from efficientad_jax.errors import InputError
from efficientad_jax.evaluation.baselines import mean_brightness_scores, pca_reconstruction_scores


def _gradients(count, size, seed):
    """Images that vary in two ways only: brightness and slope of a horizontal ramp."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(-1, 1, size)[None, None, :, None]
    level = rng.uniform(90, 160, (count, 1, 1, 1))
    slope = rng.uniform(-60, 60, (count, 1, 1, 1))
    return np.broadcast_to(level + slope * ramp, (count, size, size, 3)).round().astype(np.uint8)


def test_brightness_is_the_distance_of_the_luma_from_the_median_training_mean():
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (5, 6, 7, 3), np.uint8)
    test = rng.integers(0, 256, (4, 9, 8, 3), np.uint8)

    def luma(image):
        pixels = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b in image.reshape(-1, 3).tolist()]
        return sum(pixels) / len(pixels)

    usual = sorted(luma(image) for image in train)[2]
    expected = [abs(luma(image) - usual) for image in test]
    np.testing.assert_allclose(mean_brightness_scores(train, test), expected, rtol=1e-10)


def test_brightness_does_not_follow_an_odd_training_image():
    train = np.full((5, 4, 4, 3), 100, np.uint8)
    train[0] = 255
    assert mean_brightness_scores(train, train[1:2]) == pytest.approx([0], abs=1e-9)


def test_pca_scores_equal_those_from_a_singular_value_decomposition():
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (12, 20, 24, 3), np.uint8)
    test = rng.integers(0, 256, (5, 20, 24, 3), np.uint8)

    def vectors(images):
        small = [Image.fromarray(image).convert("L").resize((8, 8), 2) for image in images]
        return np.stack([np.asarray(image, np.float64).ravel() / 255 for image in small])

    mean = vectors(train).mean(axis=0)
    basis = np.linalg.svd(vectors(train) - mean, full_matrices=False)[2][:3]
    centered = vectors(test) - mean
    expected = np.mean((centered - centered @ basis.T @ basis) ** 2, axis=1)
    scores = pca_reconstruction_scores(train, test, components=3, side=8)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_pca_finds_defects_that_brightness_does_not():
    train, good, anomalous = (_gradients(30, 32, seed) for seed in range(3))
    anomalous = anomalous.copy()
    anomalous[:, 10:14, 10:14] = 255
    anomalous[:, 18:22, 18:22] = 0
    test = np.concatenate([good, anomalous])
    labels = np.repeat([0, 1], 30)
    scores = pca_reconstruction_scores(train, test, components=2, side=32)
    assert roc_auc_score(labels, scores) == 1.0
    assert roc_auc_score(labels, mean_brightness_scores(train, test)) < 0.8


def test_pca_takes_fewer_components_than_asked_where_there_are_few_images():
    train = _gradients(3, 16, 0)
    scores = pca_reconstruction_scores(train, train, components=64, side=16)
    np.testing.assert_allclose(scores, 0, atol=1e-9)  # Two directions rebuild three images.


def test_no_test_image_gives_no_score():
    train = _gradients(3, 16, 0)
    assert mean_brightness_scores(train, train[:0]).shape == (0,)
    assert pca_reconstruction_scores(train, train[:0]).shape == (0,)


def test_too_few_training_images_are_named():
    images = _gradients(2, 16, 0)
    with pytest.raises(InputError, match="found 0 training images, expected at least 1"):
        mean_brightness_scores(images[:0], images)
    with pytest.raises(InputError, match="found 1 training images, expected at least 2"):
        pca_reconstruction_scores(images[:1], images)

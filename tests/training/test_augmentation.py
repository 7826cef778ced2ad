"""Augmentations against torchvision's documented formulas, written out here."""

import jax
import jax.numpy as jnp
import numpy as np

from efficientad_jax.training.augmentation import grayscale, jitter, random_grayscale


def image(seed=0):
    return np.random.default_rng(seed).random((8, 9, 3)).astype(np.float32)


def luma(x):
    return 0.299 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2]


def literal(kind, x, factor):
    x = x.astype(np.float64)
    other = {
        "brightness": np.zeros((1, 1, 1)),
        "contrast": np.full((1, 1, 1), luma(x).mean()),
        "saturation": luma(x)[..., None],
    }[kind]
    return np.clip(factor * x + (1 - factor) * other, 0, 1)


KINDS = ("brightness", "contrast", "saturation")


def test_jitter_makes_one_of_the_three_changes_by_at_most_a_fifth():
    x = image()
    batch = jnp.asarray(np.stack([x] * 60))
    seen = set()
    for changed in np.asarray(jitter(jax.random.key(0), batch)):
        # Least squares for the factor of each kind; the right kind leaves no residual.
        inside = (changed > 0) & (changed < 1)
        fits = {}
        for kind in KINDS:
            neutral = literal(kind, x, 0.0)
            direction = (x - neutral)[inside]
            factor = ((changed - neutral)[inside] * direction).sum() / (direction**2).sum()
            fits[kind] = (np.abs(literal(kind, x, factor) - changed).max(), factor)
        kind = min(fits, key=lambda k: fits[k][0])
        residual, factor = fits[kind]
        assert residual < 1e-5
        assert 0.8 - 1e-4 <= factor <= 1.2 + 1e-4
        seen.add(kind)
    assert seen == set(KINDS)


def test_grayscale_comes_with_its_probability():
    batch = jnp.asarray(np.stack([image()] * 2000))
    changed = np.asarray(random_grayscale(jax.random.key(1), batch, 0.3))
    gray = np.all(changed == changed[..., :1], axis=(1, 2, 3))
    assert 0.26 < gray.mean() < 0.34
    np.testing.assert_array_equal(changed[~gray], np.asarray(batch)[~gray])
    np.testing.assert_allclose(grayscale(jnp.asarray(image()))[..., 0], luma(image()), atol=1e-6)

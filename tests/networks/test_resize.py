"""Compares resizing with PyTorch's interpolate."""

import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax.networks.resize import bilinear_matrix, resize_bilinear

torch = pytest.importorskip("torch", reason="the reference is PyTorch: pip install -e '.[test]'")


@pytest.mark.parametrize(
    ("source", "target"),
    [((1, 1), (3, 3)), ((4, 9), (8, 5)), ((128, 5), (56, 63)), ((6, 6), (6, 6))],
)
def test_bilinear_without_aligned_corners(source, target):
    x = np.random.default_rng(0).standard_normal((2, *source, 3)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(x).permute(0, 3, 1, 2), size=target, mode="bilinear", align_corners=False
    )
    actual = resize_bilinear(jnp.asarray(x), target)
    # PyTorch computes positions in float32, which moves weights by 1e-5.
    np.testing.assert_allclose(actual, expected.permute(0, 2, 3, 1), atol=5e-5)


def test_every_target_is_a_mean_of_sources():
    matrix = bilinear_matrix(15, 32)
    assert (matrix >= 0).all()
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)

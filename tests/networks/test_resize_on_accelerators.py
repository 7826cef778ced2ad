"""Resizing on a GPU and on a TPU gives the numbers and gradients of the plain products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax.networks.resize import resize_bilinear


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((1, 1), (3, 3)),
        ((3, 8), (8, 15)),
        ((15, 7), (32, 7)),
        ((63, 40), (56, 24)),
        ((9, 9), (4, 5)),
    ],
)
def test_values_and_gradients_are_those_of_the_products(source, target):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, *source, 3)), jnp.float32)
    weights = jnp.asarray(rng.standard_normal((2, *target, 3)), jnp.float32)

    def weighted_sum(x, method):
        return (weights * resize_bilinear(x, target, method=method)).sum()

    expected = resize_bilinear(x, target, method="direct")
    gradient = jax.grad(weighted_sum)
    for method in ("gpu", "tpu"):
        ours = resize_bilinear(x, target, method=method)
        assert ours.shape == (2, *target, 3)
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
        gradients = gradient(x, method), gradient(x, "direct")
        np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-5)


def test_the_transposition_adds_nothing_into_memory():
    x = jnp.ones((1, 8, 8, 2))
    gradient = jax.make_jaxpr(jax.grad(lambda x: resize_bilinear(x, (15, 15), method="gpu").sum()))(
        x
    )
    assert "scatter" not in str(gradient)


def test_bfloat16_is_rounded_once():
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 4))
    exact = resize_bilinear(x.astype(jnp.bfloat16).astype(jnp.float32), (15, 15))
    ours = resize_bilinear(x.astype(jnp.bfloat16), (15, 15), method="gpu")
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, exact.astype(jnp.bfloat16))

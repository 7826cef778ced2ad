"""Convolutions that are padded before the operation, as on a GPU, are the same convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax.convolution import convolve


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "padding", "explicit"), [(4, 3, True), (4, 2, True), (3, 1, False)]
)
def test_outputs_and_gradients_are_the_same(size, padding, explicit):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 9, 11, 3))
    kernel = jax.random.normal(keys[1], (size, size, 3, 5))
    out = convolve(x, kernel, padding=padding, method="direct")
    weights = jax.random.normal(keys[2], out.shape)

    def weighted_sum(x, kernel, method):
        return (weights * convolve(x, kernel, padding=padding, method=method)).sum()

    expected = (out, *jax.grad(weighted_sum, (0, 1))(x, kernel, "direct"))
    ours = (
        convolve(x, kernel, padding=padding, method="gpu"),
        *jax.grad(weighted_sum, (0, 1))(x, kernel, "gpu"),
    )
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    # XLA must not fold the zeros into the operation again where the outputs are larger than `x`.
    program = jax.make_jaxpr(lambda x: convolve(x, kernel, padding=padding, method="gpu"))(x)
    assert ("optimization_barrier" in str(program)) == explicit
    assert jnp.isfinite(ours[0]).all()

"""Tests the transforms in rational arithmetic, and compares the convolution with XLA's."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from efficientad_jax.convolution import convolve
from efficientad_jax.convolution.cook_toom import cook_toom_convolution, transforms


@pytest.mark.parametrize("r", [2, 3, 4, 5])
def test_the_identity_holds_exactly(r):
    t = transforms(4, r)
    rng = np.random.default_rng(r)
    signal = [int(v) for v in rng.integers(-9, 10, t.input.shape[1])]
    taps = [int(v) for v in rng.integers(-9, 10, r)]

    def times(matrix, vector):
        rows = [[Fraction(x).limit_denominator(10_000) for x in row] for row in matrix]
        return [sum(x * v for x, v in zip(row, vector, strict=True)) for row in rows]

    products = [a * b for a, b in zip(times(t.input, signal), times(t.kernel, taps), strict=True)]
    expected = [sum(signal[i + j] * taps[j] for j in range(r)) for i in range(4)]
    assert times(t.output, products) == expected


def direct(x, kernel, stride=1, padding=0):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def assert_value_and_gradients_agree(f, g, x, kernel, tolerance):
    cotangent = jnp.asarray(np.random.default_rng(3).standard_normal(g(x, kernel).shape), x.dtype)

    def everything(f):
        y, pull = jax.vjp(f, x, kernel)
        return (y, *pull(cotangent))

    ours, theirs = jax.jit(lambda: everything(f))(), jax.jit(lambda: everything(g))()
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def arrays(height, width, channels, out, taps, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, height, width, channels)).astype(np.float32)
    kernel = rng.standard_normal((*taps, channels, out)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(kernel)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("height", "width", "r"), [(4, 4, 4), (7, 12, 4), (13, 6, 3), (18, 9, 4), (5, 8, 2)]
)
def test_convolution_and_gradients_are_xlas(height, width, r):
    x, kernel = arrays(height, width, 5, 3, (r, r))
    assert_value_and_gradients_agree(cook_toom_convolution, direct, x, kernel, 3e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("channels", "taps", "stride", "padding"),
    [
        (3, (4, 4), 2, 1),
        (3, (4, 4), 1, 0),
        (32, (4, 4), 1, 2),
        (32, (3, 3), 1, 1),
        (32, (1, 1), 1, 0),
        (4, (3, 3), 2, 0),
        (4, (5, 3), 3, 1),
        (4, (11, 14), 1, 0),
        (4, (5, 5), 1, 2),
    ],
)
def test_products_are_the_direct_convolution(channels, taps, stride, padding):
    x, kernel = arrays(11, 14, channels, 6, taps)

    def products(x, kernel):
        return convolve(x, kernel, stride, padding=padding, method="products")

    def xlas(x, kernel):
        return direct(x, kernel, stride, padding)

    assert_value_and_gradients_agree(products, xlas, x, kernel, 3e-5)

"""Operations are counted as XLA counts them, whatever the platform."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from efficientad_jax.compilation.flops import count_flops


def counted(function, *arguments):
    return count_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def convolve(x, kernel, **options):
    options = {"window_strides": (1, 1), "padding": "VALID"} | options
    return lax.conv_general_dilated(
        x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": ((3, 3), (2, 1))},
        {"window_strides": (2, 2), "padding": "SAME"},
        {"lhs_dilation": (2, 2), "padding": ((1, 1), (1, 1))},
        {"rhs_dilation": (2, 1)},
    ],
)
def test_convolutions_are_counted_as_by_xla(options):
    x, kernel = jnp.ones((2, 9, 8, 3)), jnp.ones((4, 3, 3, 5))
    compiled = jax.jit(lambda x, k: convolve(x, k, **options)).lower(x, kernel)
    assert counted(lambda x, k: convolve(x, k, **options), x, kernel) == pytest.approx(
        compiled.cost_analysis()["flops"]
    )


def test_grouped_convolutions_see_their_own_channels_only():
    x, kernel = jnp.ones((1, 4, 4, 6)), jnp.ones((2, 2, 3, 8))
    assert counted(lambda x: convolve(x, kernel, feature_group_count=2), x) == 2 * 9 * 8 * 4 * 3


def test_loops_count_as_often_as_they_run_and_branches_once():
    a = jnp.ones((3, 4))

    def step(x, _):
        return lax.cond(x.sum() > 0, lambda x: (x @ x.T) @ x, lambda x: x, x), None

    product = 2 * 3 * 3 * 4
    assert counted(lambda a: lax.scan(step, a, length=5)[0], a) == 5 * 2 * product

"""Convolutions as on a GPU or TPU, computed on a CPU, are the same convolutions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax.convolution import (
    chosen_method,
    convolve,
    convolve_with_epilogue,
    is_for_accelerator,
)
from efficientad_jax.convolution.native import Epilogue


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gpu", "tpu"])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("size", [(1, 9, 11), (2, 9, 10), (2, 10, 8)])
def test_values_and_gradients_with_an_epilogue(method, pool, size):
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (*size, 3))
    kernel, bias = jax.random.normal(keys[1], (4, 4, 3, 5)), jax.random.normal(keys[2], (5,))

    def apply(x, kernel, bias, method):
        epilogue = Epilogue(relu=True, pool=pool)
        return convolve_with_epilogue(x, kernel, bias, epilogue=epilogue, method=method)

    weights = jax.random.normal(keys[3], apply(x, kernel, bias, "direct").shape)

    def weighted_sum(x, kernel, bias, method):
        return (weights * apply(x, kernel, bias, method)).sum()

    gradient = jax.value_and_grad(weighted_sum, (0, 1, 2))
    ours, expected = gradient(x, kernel, bias, method), gradient(x, kernel, bias, "direct")
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["gpu", "tpu"])
def test_a_kernel_as_large_as_the_image_is_a_product(method):
    x = jax.random.normal(jax.random.key(0), (2, 8, 6, 3))
    kernel = jax.random.normal(jax.random.key(1), (8, 6, 3, 5))
    np.testing.assert_allclose(
        convolve(x, kernel, method=method),
        convolve(x, kernel, method="direct"),
        rtol=1e-4,
        atol=1e-4,
    )
    program = str(jax.make_jaxpr(lambda x: convolve(x, kernel, method=method))(x))
    assert "dot_general" in program
    assert "conv_general_dilated" not in program


def test_the_platform_is_that_of_the_default_device(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert chosen_method("auto") == "gpu"
    # A process that has a GPU can compute on its CPU.
    with jax.default_device(jax.devices("cpu")[0]):
        assert chosen_method("auto") in ("native", "products")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert chosen_method("auto") == "tpu"
    monkeypatch.setattr(jax, "default_backend", lambda: "other")
    assert chosen_method("auto") == "direct"


def test_methods_of_accelerators():
    assert all(map(is_for_accelerator, ("direct", "gpu", "tpu")))
    assert not any(map(is_for_accelerator, ("auto", "native", "products")))
    assert chosen_method("tpu") == "tpu"


def test_one_process_compiles_for_several_platforms():
    x, kernel = jnp.ones((1, 9, 9, 3)), jnp.ones((4, 4, 3, 5))
    programs = [
        str(jax.make_jaxpr(partial(convolve, padding=3, method=method))(x, kernel))
        for method in ("gpu", "tpu", "products")
    ]
    assert ["optimization_barrier" in program for program in programs] == [True, False, False]
    assert ["conv_general_dilated" in program for program in programs] == [True, True, False]

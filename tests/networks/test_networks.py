"""Compares the networks with independent PyTorch implementations of the paper's tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax import Autoencoder, PatchDescriptionNetwork
from efficientad_jax.networks.pdn import RECEPTIVE_FIELD, output_size
from tests.helpers.detectors import random_params
from tests.helpers.torch_reference import (
    to_torch,
    torch_autoencoder,
    torch_params,
    torch_pdn,
)


def images(height, width, batch=1):
    shape = (batch, height, width, 3)
    return jnp.asarray(np.random.default_rng(7).standard_normal(shape), jnp.float32)


def assert_agree(ours, theirs):
    theirs = theirs.detach().numpy().transpose(0, 2, 3, 1)
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "channels", "padding", "method"),
    [
        ("small", 384, False, "native"),
        ("small", 768, True, "native"),
        ("small", 768, False, "direct"),
        ("small", 384, True, "direct"),
        ("medium", 384, False, "native"),
        ("medium", 768, True, "direct"),
        ("medium", 384, False, "direct"),
    ],
)
def test_pdn_agrees_with_pytorch(size, channels, padding, method):
    network = PatchDescriptionNetwork(size, channels, padding=padding, convolution=method)
    x = images(128, 160)
    params = random_params(network, (128, 160))
    theirs = torch_pdn(torch_params(params), to_torch(x), size, padding)
    assert_agree(jax.jit(network.apply)(params, x), theirs)


@pytest.mark.parametrize(
    ("size", "method"),
    [((128, 160), "native"), ((128, 160), "direct"), ((256, 256), "direct")],
)
def test_autoencoder_agrees_with_pytorch(size, method):
    output = output_size(*size)
    network = Autoencoder(384, output, convolution=method)
    x = images(*size)
    params = random_params(network, size)
    theirs = torch_autoencoder(torch_params(params), to_torch(x), output)
    assert_agree(jax.jit(network.apply)(params, x), theirs)


@pytest.mark.parametrize(("padding", "side"), [(False, 56), (True, 64)])
def test_output_of_256_is_as_in_the_paper(padding, side):
    network = PatchDescriptionNetwork(padding=padding)
    x = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), x)
    assert jax.eval_shape(network.apply, params, x).shape == (1, side, side, 384)
    assert output_size(256, 256, padding) == (side, side)


@pytest.mark.parametrize(("size", "million", "gflop"), [("small", 8.06, 76), ("medium", 20.7, 235)])
def test_parameters_and_flop_are_the_papers(size, million, gflop):
    x = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    networks = (
        PatchDescriptionNetwork(size, 384, convolution="direct"),
        PatchDescriptionNetwork(size, 768, convolution="direct"),
        Autoencoder(384, (56, 56), convolution="direct"),
    )
    count, flop = 0, 0.0
    for network in networks:
        params = jax.eval_shape(network.init, jax.random.key(0), x)
        count += sum(leaf.size for leaf in jax.tree.leaves(params))
        flop += jax.jit(network.apply).lower(params, x).compile().cost_analysis()["flops"]
    assert count / 1e6 == pytest.approx(million, abs=0.05)
    assert flop / 1e9 == pytest.approx(gflop, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "medium"])
def test_half_of_the_channels_is_a_slice_of_all(size):
    network = PatchDescriptionNetwork(size, 32)
    x = images(128, 128)
    params = random_params(network, (128, 128))
    everything = network.apply(params, x)
    half = network.apply(params, x, slice(16, None))
    np.testing.assert_allclose(half, everything[..., 16:], atol=1e-5 * np.abs(everything).max())


@pytest.mark.slow
def test_receptive_field_is_33_pixels():
    # Direct, as the transforms of the other methods leave rounding noise in place of zeros.
    network = PatchDescriptionNetwork("small", 4, convolution="direct")
    x = images(128, 128)
    params = random_params(network, (128, 128))
    gradient = jax.grad(lambda x: network.apply(params, x)[0, 10, 12].sum())(x)
    rows, columns = np.nonzero(np.abs(gradient[0]).sum(-1) > 0)
    assert (rows.min(), rows.max()) == (40, 40 + RECEPTIVE_FIELD - 1)
    assert (columns.min(), columns.max()) == (48, 48 + RECEPTIVE_FIELD - 1)


@pytest.mark.slow
def test_bfloat16_computes_with_float32_parameters():
    network = PatchDescriptionNetwork("small", 16, dtype=jnp.bfloat16)
    x = images(128, 128)
    params = network.init(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    low = network.apply(params, x)
    full = PatchDescriptionNetwork("small", 16).apply(params, x)
    assert low.dtype == jnp.bfloat16
    assert 0 < np.abs(np.asarray(low, np.float32) - full).max() < 0.03 * np.abs(full).max()


@pytest.mark.slow
def test_dropout_needs_training_mode():
    network = Autoencoder(8, (24, 24))
    x = images(128, 128)
    params = random_params(network, (128, 128))
    rngs = {"dropout": jax.random.key(3)}
    dropped = network.apply(params, x, deterministic=False, rngs=rngs)
    assert not np.allclose(dropped, network.apply(params, x))


@pytest.mark.parametrize("size", [(96, 128), (128, 144)])
def test_autoencoder_refuses_sides_that_are_too_small_or_not_divisible(size):
    with pytest.raises(ValueError, match="divisible by 32, at least 128"):
        Autoencoder().init(jax.random.key(0), jnp.zeros((1, *size, 3)))


@pytest.mark.slow
def test_an_untrained_autoencoder_keeps_the_difference_of_two_images():
    # With PyTorch's default kernels, smaller by sqrt(6), 2e-7 of the difference remains.
    network = Autoencoder(8, output_size(128, 128), convolution="direct")
    x = images(128, 128, batch=2)
    first, second = network.apply(network.init(jax.random.key(0), x), x)
    assert float(jnp.std(first - second)) > 0.01

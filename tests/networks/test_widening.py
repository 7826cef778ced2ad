"""PDN-M starts as the PDN-S that it was widened from, and its pairs of channels part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax.networks.pdn import PatchDescriptionNetwork
from efficientad_jax.networks.teacher import layer_shapes
from efficientad_jax.networks.widening import medium_from_small

CHANNELS = 8


@pytest.fixture(scope="module")
def small():
    params = PatchDescriptionNetwork("small", CHANNELS).init(
        jax.random.key(0), jnp.zeros((1, 64, 64, 3))
    )
    biases = iter(jax.random.split(jax.random.key(1), 4))
    return {
        "params": {
            name: layer | {"bias": 0.1 * jax.random.normal(next(biases), layer["bias"].shape)}
            for name, layer in params["params"].items()
        }
    }


@pytest.fixture(scope="module")
def medium(small):
    return medium_from_small(small, jax.random.key(2))


def test_it_has_the_parameters_of_a_medium_network(medium):
    shapes = {
        f"{layer}.{name}": array.shape
        for layer, arrays in medium["params"].items()
        for name, array in arrays.items()
    }
    assert shapes == layer_shapes("medium", CHANNELS)


@pytest.mark.parametrize("padding", [False, True])
def test_the_output_is_that_of_the_small_network(small, medium, padding):
    images = jax.random.normal(jax.random.key(3), (2, 64, 48, 3))
    ours = PatchDescriptionNetwork("medium", CHANNELS, padding).apply(medium, images)
    expected = PatchDescriptionNetwork("small", CHANNELS, padding).apply(small, images)
    assert np.std(expected) > 0.02
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_features_below_the_shift_are_raised_to_it(small):
    last = small["params"]["conv4"]
    low = {"params": small["params"] | {"conv4": last | {"bias": last["bias"] - 5.0}}}
    images = jax.random.normal(jax.random.key(3), (1, 48, 48, 3))
    medium = medium_from_small(low, jax.random.key(2))
    ours = PatchDescriptionNetwork("medium", CHANNELS).apply(medium, images)
    expected = PatchDescriptionNetwork("small", CHANNELS).apply(low, images)
    np.testing.assert_allclose(ours, np.maximum(expected, -4.0), atol=2e-5)


def test_gradients_tell_the_two_channels_of_a_pair_apart(medium):
    network = PatchDescriptionNetwork("medium", CHANNELS)
    images = jax.random.normal(jax.random.key(3), (1, 48, 48, 3))
    targets = jax.random.normal(jax.random.key(4), (1, 4, 4, CHANNELS))

    def loss(params):
        return jnp.mean(jnp.square(network.apply(params, images) - targets))

    gradients = jax.grad(loss)(medium)["params"]
    for name in ("conv1", "conv2", "conv3", "conv4"):
        first, second = np.split(np.asarray(gradients[name]["kernel"]), 2, -1)
        assert np.corrcoef(first.ravel(), second.ravel())[0, 1] < 0.9, name

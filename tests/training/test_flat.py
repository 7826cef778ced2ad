"""The state as vectors, as on a GPU: the same steps, and the same trees afterwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax.config import LossConfig
from efficientad_jax.networks.model import create_networks
from efficientad_jax.optimizer import adam_with_l2
from efficientad_jax.training import step as training_step
from efficientad_jax.training.batch import TrainData
from efficientad_jax.training.flat import flat_layout
from efficientad_jax.training.step import TrainState, create_train_state, scan_steps
from tests.helpers.detectors import random_params
from tests.helpers.images import uint8_images

SIZE = (128, 128)
TREE = {"a": {"kernel": jnp.arange(24.0).reshape(1, 2, 3, 4), "bias": jnp.arange(4.0)}, "b": 7.0}


def test_a_tree_is_the_tree_of_its_vector():
    tree = jax.tree.map(jnp.atleast_1d, TREE)
    layout = flat_layout(tree)
    vector = layout.flatten(tree)
    assert vector.shape == (29,)
    jax.tree.map(np.testing.assert_array_equal, layout.unflatten(vector), tree)
    assert layout.unflatten(vector, jnp.bfloat16)["a"]["bias"].dtype == jnp.bfloat16


def test_kernels_are_stored_by_output_channel():
    tree = {"kernel": TREE["a"]["kernel"]}
    vector = flat_layout(tree).flatten(tree)
    np.testing.assert_array_equal(vector[:6], tree["kernel"][..., 0].ravel())


def test_the_moments_of_an_optimizer_are_flattened_and_the_rest_is_kept():
    params = {"kernel": jnp.ones((1, 1, 2, 2)), "bias": jnp.ones(2)}
    optimizer = adam_with_l2(1e-3, 1e-5)
    state = TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))
    layout = flat_layout(params)
    flat = layout.map(layout.flatten, state)
    assert sorted(leaf.shape for leaf in jax.tree.leaves(flat)) == [(), (), (6,), (6,), (6,)]
    back = layout.map(layout.unflatten, flat)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)


@pytest.mark.slow
def test_steps_are_those_of_a_state_of_trees(monkeypatch):
    networks = create_networks("small", 4, SIZE, convolution="products")
    optimizer = adam_with_l2(1e-3, 1e-5)
    state = create_train_state(jax.random.key(0), networks, optimizer, input_size=SIZE)
    images = jnp.asarray(uint8_images(2, SIZE))
    steps = jnp.arange(2, dtype=jnp.int32)[:, None]

    def train():
        return jax.jit(scan_steps, static_argnames=("networks", "objective", "optimizer"))(
            networks,
            # The autoencoder's parameters are in the vectors, and have gradients of zero.
            LossConfig(p_hard=0.99, autoencoder=False),
            optimizer,
            teacher_params=random_params(networks.teacher, SIZE),
            data=TrainData(images, None, images),
            state=state,
            indices=steps,
            pretraining_indices=steps,
            key=jax.random.key(1),
        )

    expected = train()
    monkeypatch.setattr(training_step, "chosen_method", lambda method: "gpu")
    ours = train()
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

"""The number of steps that fit into some minutes."""

import jax.numpy as jnp
import pytest

from efficientad_jax import recipes
from efficientad_jax.config import replace
from efficientad_jax.networks.model import create_networks
from efficientad_jax.training import rate


def test_steps_are_whole_dispatches_that_fit_into_the_minutes():
    assert rate.steps_within(15.0, 0.088, 10) == 10_220
    assert 10_220 * 0.088 <= 15 * 60 < 10_230 * 0.088
    assert rate.steps_within(0.01, 60.0, 10) == 10


@pytest.mark.slow
@pytest.mark.parametrize("has_cached_features", [True, False])
def test_the_steps_of_a_configuration_are_timed_without_their_compilation(
    monkeypatch, has_cached_features
):
    times = iter([100.0, 104.0, 108.0, 112.0])  # after each dispatch; the first one compiles
    given = []

    def make_steps(*static, state, data, indices, **others):
        given.append((data, indices, others["crop"]))
        return state, jnp.zeros(len(indices))

    monkeypatch.setattr(rate, "monotonic", lambda: next(times))
    monkeypatch.setattr(rate, "train_steps", make_steps)
    changes = {"model.input_height": 128, "model.input_width": 640, "train.batch_size": 2}
    networks = create_networks("small", 4, (128, 640))
    seconds = rate.seconds_per_step(
        replace(recipes.folder(), changes), networks, {}, has_cached_features=has_cached_features
    )
    assert seconds == pytest.approx(12 / 30)
    assert len(given) == 4
    data, indices, crop = given[0]
    assert data.images.shape == (2, 128, 640, 3)
    features = data.teacher_features
    assert (features is not None) == has_cached_features
    if features is not None:
        assert features.shape == (2, 24, 152, 4)
    assert data.pretraining_images is None
    assert (indices.shape, crop) == ((10, 2), (128, 576))

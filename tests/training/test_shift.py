"""Steps that see their images from a random pixel on, `config.train.shift`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax.config import Config, LossConfig, replace
from efficientad_jax.errors import InputError
from efficientad_jax.networks.ignored import (
    Ignored,
    ignored_outputs,
    ignored_outputs_of_parts,
    ignored_places,
)
from efficientad_jax.networks.model import create_networks
from efficientad_jax.networks.pdn import output_size
from efficientad_jax.networks.teacher import Teacher
from efficientad_jax.optimizer import adam_with_l2
from efficientad_jax.training.batch import TrainData, random_crops
from efficientad_jax.training.step import compute_losses, create_train_state, train_steps
from efficientad_jax.training.teacher_features import features_fit, normalize_over_images

SIZE, PART, CHANNELS = (128, 160), (124, 156), 16
LOSSES = LossConfig(penalty=False, autoencoder=False)


def noise(count):
    return jax.random.randint(jax.random.key(0), (count, *SIZE, 3), 0, 256).astype(jnp.uint8)


def place_of(part, image):
    """Where the only copy of a part begins in an image."""
    found = [
        (top, left)
        for top in range(5)
        for left in range(5)
        if np.array_equal(image[top : top + PART[0], left : left + PART[1]], part)
    ]
    assert len(found) == 1
    return found[0]


def test_parts_begin_at_all_pixels_of_a_stride_and_of_the_next():
    images, chosen = noise(2), jnp.array([0, 1] * 100)
    batch = random_crops(
        TrainData(images, None, None), chosen, chosen, crop=PART, key=jax.random.key(0), shift=True
    )
    pairs = zip(np.asarray(batch.images), np.asarray(images)[chosen], strict=True)
    places = {place_of(*pair) for pair in pairs}
    assert places == {(top, left) for top in range(5) for left in range(5)}


def test_what_is_ignored_moves_with_the_pixels():
    images, generator = noise(2), np.random.default_rng(0)
    pixels = np.zeros((2, *SIZE), bool)
    for mask in pixels:  # large enough for outputs that see nothing else
        top, left = generator.integers(0, 60, 2)
        mask[top : top + 61, left : left + 67] = True
    parts = [ignored_places(mask, padding=False, upsample_first=False) for mask in pixels]
    ignored = Ignored(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    data, chosen = TrainData(images, None, None, ignored), jnp.array([0, 1] * 10)

    batch = random_crops(data, chosen, chosen, crop=PART, key=jax.random.key(0), shift=True)

    places = set()
    for part, which, hidden, values in zip(batch.images, chosen, *batch.ignored, strict=True):
        top, left = place_of(np.asarray(part), np.asarray(images[which]))
        places.add((top % 4, left % 4))
        expected = pixels[which, top : top + PART[0], left : left + PART[1]]
        np.testing.assert_array_equal(hidden, expected)
        of_outputs = ignored_outputs(expected, output_size(*PART))
        assert 0 < of_outputs.sum() < of_outputs.size
        np.testing.assert_array_equal(values, of_outputs)
    assert len(places) > 8


@pytest.mark.parametrize("shape", [(36, 40), (64, 36), (72, 64)])
def test_outputs_of_parts_are_ignored_as_those_of_images(shape):
    pixels = np.random.default_rng(1).random((40, *shape)) < 0.9997
    expected = [ignored_outputs(mask, output_size(*shape)) for mask in pixels]
    assert np.unique(expected).tolist() == [False, True]
    np.testing.assert_array_equal(jax.jit(ignored_outputs_of_parts)(pixels), expected)


@pytest.mark.slow
def test_a_step_has_the_losses_of_its_part():
    networks = create_networks("small", CHANNELS, SIZE, convolution="native")
    direct = create_networks("small", CHANNELS, SIZE, convolution="direct")
    teacher = direct.teacher.init(jax.random.key(2), jnp.zeros((1, *SIZE, 3)))
    optimizer, key = adam_with_l2(1e-4, 1e-5), jax.random.key(1)
    state = create_train_state(jax.random.key(0), networks, optimizer, input_size=SIZE)
    params = jax.tree.map(jnp.copy, state.params)  # the state is donated
    data, indices = TrainData(noise(3), None, None), jnp.array([[2], [0]])

    _, losses = train_steps(
        networks,
        LOSSES,
        optimizer,
        teacher_params=teacher,
        data=data,
        state=state,
        indices=indices,
        pretraining_indices=indices,
        key=key,
        crop=PART,
        shift=True,
    )

    step_key = jax.random.fold_in(key, 0)
    crop_key = jax.random.fold_in(step_key, 0)
    batch = random_crops(data, indices[0], indices[0], crop=PART, key=crop_key, shift=True)
    assert place_of(np.asarray(batch.images[0]), np.asarray(data.images[2])) != (0, 0)
    expected = compute_losses(direct, LOSSES, teacher, params=params, batch=batch, key=step_key)
    np.testing.assert_allclose(losses.hard[0], expected.hard, rtol=1e-3)


@pytest.mark.slow
def test_features_are_not_cached_and_their_statistics_are_those_of_whole_images():
    network = create_networks("small", CHANNELS, SIZE).teacher
    params = network.init(jax.random.key(2), jnp.zeros((1, *SIZE, 3)))
    teacher, images = Teacher("small", CHANNELS, params, {}), np.asarray(noise(3))
    config = replace(Config(), {"train.shift": True})
    assert not features_fit(images, network, config)
    shifted, features = normalize_over_images(network, teacher, images, config=config)
    usual, cached = normalize_over_images(network, teacher, images, config=Config())
    assert features is None
    assert cached is not None
    jax.tree.map(np.testing.assert_array_equal, shifted, usual)


def test_parts_leave_room_for_a_shift():
    def crop_size(**changes):
        return replace(Config(), {"train.shift": True} | changes).crop_size

    assert crop_size() == (252, 252)
    assert crop_size(**{"model.input_height": 160, "model.input_width": 416}) == (156, 412)
    assert crop_size(**{"train.crop": 128}) == (128, 128)
    assert crop_size(**{"train.crop": 256}) == (252, 252)
    assert crop_size(**{"model.fit": "tile"}) == (256, 256)
    with pytest.raises(InputError, match=r"shift = True: expected False with config\.model\.pad"):
        crop_size(**{"model.padding": True})

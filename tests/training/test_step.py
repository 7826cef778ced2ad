"""One whole step of Algorithm 1 against PyTorch, and the losses that can be switched off."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax.config import LossConfig
from efficientad_jax.networks import autoencoder
from efficientad_jax.networks.ignored import Ignored
from efficientad_jax.networks.model import create_networks
from efficientad_jax.networks.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from efficientad_jax.optimizer import adam_with_l2
from efficientad_jax.training.augmentation import jitter, random_grayscale
from efficientad_jax.training.batch import Batch, TrainData, random_crops, take_batch
from efficientad_jax.training.step import TrainState, compute_losses, train_steps
from tests.helpers.detectors import random_params
from tests.helpers.images import uint8_images
from tests.helpers.torch_reference import (
    to_torch,
    torch,
    torch_autoencoder,
    torch_params,
    torch_pdn,
)

SIZE = (128, 128)
CHANNELS = 8
NETWORKS = create_networks("small", CHANNELS, SIZE, convolution="direct")
OBJECTIVE = LossConfig(p_hard=0.99)


def noise(count, seed):
    return jnp.asarray(uint8_images(count, SIZE, seed))


def teacher_params():
    return random_params(NETWORKS.teacher, SIZE, seed=5)


def student_params():
    return {
        "student": random_params(NETWORKS.student, SIZE, seed=6),
        "autoencoder": random_params(NETWORKS.autoencoder, SIZE, seed=7),
    }


def normalized(images):
    return to_torch((np.asarray(images) - IMAGENET_MEAN) / IMAGENET_STD)


def torch_losses(teacher, student, ae, images, augmented, pretraining):
    """Algorithm 1, lines 12-32, for images that are already augmented."""
    target = torch_pdn(teacher, normalized(images), "small", False).detach()
    difference = (
        target - torch_pdn(student, normalized(images), "small", False)[:, :CHANNELS]
    ) ** 2
    hard = difference[difference >= torch.quantile(difference, OBJECTIVE.p_hard)].mean()
    outside = torch_pdn(student, normalized(pretraining), "small", False)[:, :CHANNELS]
    x = normalized(augmented)
    target = torch_pdn(teacher, x, "small", False).detach()
    predicted = torch_autoencoder(ae, x, (24, 24))
    second = torch_pdn(student, x, "small", False)[:, CHANNELS:]
    return (
        hard,
        (outside**2).mean(),
        ((target - predicted) ** 2).mean(),
        ((predicted - second) ** 2).mean(),
    )


def assert_near(ours, theirs):
    theirs = theirs.detach().numpy()
    assert np.abs(np.asarray(ours) - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.slow
def test_losses_gradients_and_update_are_pytorchs(monkeypatch):
    # Two frameworks cannot draw the same dropout; the rest of the randomness is given to both.
    monkeypatch.setattr(autoencoder, "DROPOUT_RATE", 0.0)
    key = jax.random.key(3)
    jitter_key, gray_key, _ = jax.random.split(key, 3)
    images, others = noise(1, 0), noise(1, 1)
    augmented = jitter(jitter_key, images / 255.0)
    pretraining = random_grayscale(gray_key, others / 255.0, OBJECTIVE.grayscale_probability)
    params, batch = student_params(), Batch(images, None, others)

    def total(params):
        losses = compute_losses(
            NETWORKS, OBJECTIVE, teacher_params(), params=params, batch=batch, key=key
        )
        return losses.total, losses

    gradients, losses = jax.jit(jax.grad(total, has_aux=True))(params)

    student, ae = (torch_params(params[name]) for name in ("student", "autoencoder"))
    expected = torch_losses(
        torch_params(teacher_params()), student, ae, images / 255.0, augmented, pretraining
    )
    sum(expected).backward()
    for ours, theirs in zip(losses, expected, strict=True):
        assert_near(ours, theirs)
    for name, layers in (("student", student), ("autoencoder", ae)):
        for layer, (kernel, bias) in layers.items():
            ours = gradients[name]["params"][layer]
            assert_near(ours["kernel"], kernel.grad.permute(2, 3, 1, 0))
            assert_near(ours["bias"], bias.grad)

    optimizer = adam_with_l2(1e-3, 1e-2)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    leaves = [tensor for layers in (student, ae) for pair in layers.values() for tensor in pair]
    before = student["conv2"][0].detach().clone()
    torch.optim.Adam(leaves, lr=1e-3, weight_decay=1e-2).step()
    moved = (student["conv2"][0].detach() - before).permute(2, 3, 1, 0).numpy()
    ours = np.asarray(updates["student"]["params"]["conv2"]["kernel"])
    # Adam's first step is the sign of the gradient where that is not near zero.
    assert np.mean(np.abs(ours - moved) < 1e-5) > 0.999


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "zero"),
    [
        (LossConfig(penalty=False), {"penalty"}),
        (LossConfig(autoencoder=False), {"autoencoder", "student_autoencoder"}),
        (
            LossConfig(penalty=False, autoencoder=False),
            {"penalty", "autoencoder", "student_autoencoder"},
        ),
    ],
)
def test_each_loss_can_be_switched_off(objective, zero):
    batch = Batch(noise(2, 0), None, noise(2, 1))
    losses = compute_losses(
        NETWORKS,
        objective,
        teacher_params(),
        params=student_params(),
        batch=batch,
        key=jax.random.key(0),
    )
    assert {name for name, loss in losses._asdict().items() if loss == 0} == zero


def test_plain_mean_in_place_of_mining():
    batch = Batch(noise(1, 0), None, None)
    inputs = {"params": student_params(), "batch": batch, "key": jax.random.key(0)}
    off = LossConfig(p_hard=0.0, penalty=False, autoencoder=False)
    plain = compute_losses(NETWORKS, off, teacher_params(), **inputs).hard
    x = (batch.images / 255.0 - IMAGENET_MEAN) / IMAGENET_STD
    teacher = NETWORKS.teacher.apply(teacher_params(), x)
    student = NETWORKS.student.apply(student_params()["student"], x)[..., :CHANNELS]
    assert plain == pytest.approx(float(np.square(teacher - student).mean()), rel=1e-5)


def test_penalty_without_photographs_is_refused():
    batch = Batch(noise(1, 0), None, None)
    with pytest.raises(ValueError, match="pretraining images"):
        compute_losses(
            NETWORKS,
            OBJECTIVE,
            teacher_params(),
            params=student_params(),
            batch=batch,
            key=jax.random.key(0),
        )


@pytest.mark.slow
def test_crops_have_the_features_of_whole_images_there():
    images, photographs = noise(3, 0), noise(2, 1)
    x = (images / 255.0 - IMAGENET_MEAN) / IMAGENET_STD
    features = NETWORKS.teacher.apply(teacher_params(), x).astype(jnp.float16)
    data = TrainData(images, features, photographs)
    chosen, others = jnp.array([2, 0, 2, 1] * 8), jnp.array([1, 0] * 16)
    batch = random_crops(data, chosen, others, crop=(64, 64), key=jax.random.key(0))
    assert batch.images.shape == batch.pretraining_images.shape == (32, 64, 64, 3)
    x = (batch.images / 255.0 - IMAGENET_MEAN) / IMAGENET_STD
    expected = NETWORKS.teacher.apply(teacher_params(), x)
    np.testing.assert_allclose(batch.teacher_features, expected, rtol=2e-3, atol=2e-3)
    places = set()
    for crops, whole, indices in (
        (batch.images, images, chosen),
        (batch.pretraining_images, photographs, others),
    ):
        whole = np.asarray(whole)
        for crop, i in zip(np.asarray(crops), indices, strict=True):
            found = [
                (top, left)
                for top, left in product(range(0, 65, 4), repeat=2)
                if np.array_equal(whole[i, top : top + 64, left : left + 64], crop)
            ]
            assert len(found) == 1
            places.add(found[0])
    assert len(places) > 48


@pytest.mark.slow
def test_a_step_on_crops_has_their_losses():
    objective = LossConfig(penalty=False, autoencoder=False)
    networks = create_networks("small", CHANNELS, SIZE, convolution="native")
    optimizer = adam_with_l2(1e-4, 1e-5)
    data, indices, key = TrainData(noise(3, 0), None, None), jnp.array([[2]]), jax.random.key(1)
    params = student_params()
    state = TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))
    _, losses = train_steps(
        networks,
        objective,
        optimizer,
        teacher_params=teacher_params(),
        data=data,
        state=state,
        indices=indices,
        pretraining_indices=indices,
        key=key,
        crop=(64, 96),
    )
    step_key = jax.random.fold_in(key, 0)
    crop_key = jax.random.fold_in(step_key, 0)
    batch = random_crops(data, indices[0], indices[0], crop=(64, 96), key=crop_key)
    assert batch.images.shape == (1, 64, 96, 3)
    expected = compute_losses(
        NETWORKS, objective, teacher_params(), params=student_params(), batch=batch, key=step_key
    )
    np.testing.assert_allclose(losses.hard, [expected.hard], rtol=1e-3)


@pytest.mark.slow
def test_the_penalty_may_see_a_part_of_the_photograph():
    images, photographs, key = noise(3, 0), noise(2, 1), jax.random.key(0)
    data, chosen, others = TrainData(images, None, photographs), jnp.array([2]), jnp.array([1])
    given = {"key": key, "whole": False}
    whole = take_batch(data, chosen, others, crop=None, **given)
    batch = take_batch(data, chosen, others, crop=None, penalty_crop=(40, 64), **given)
    np.testing.assert_array_equal(batch.images, whole.images)
    part = np.asarray(batch.pretraining_images)[0]
    places = product(range(0, SIZE[0] - 39, 4), range(0, SIZE[1] - 63, 4))
    photograph = np.asarray(photographs[1])
    found = [
        (top, left)
        for top, left in places
        if np.array_equal(photograph[top : top + 40, left : left + 64], part)
    ]
    assert len(found) == 1
    objective = LossConfig(autoencoder=False, grayscale_probability=0.0)
    of_whole, of_part = (
        compute_losses(
            NETWORKS, objective, teacher_params(), params=student_params(), batch=b, key=key
        )
        for b in (whole, batch)
    )
    assert of_part.hard == pytest.approx(float(of_whole.hard), rel=1e-5)
    x = (part[None] / 255.0 - IMAGENET_MEAN) / IMAGENET_STD
    features = NETWORKS.student.apply(student_params()["student"], jnp.asarray(x, jnp.float32))
    expected = np.mean(np.square(features[..., :CHANNELS], dtype=np.float64))
    assert of_part.penalty == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_steps_on_crops_have_the_penalty_of_parts_of_another_size():
    data, chosen, others = TrainData(noise(3, 0), None, noise(2, 1)), jnp.array([2]), jnp.array([1])
    objective = LossConfig(autoencoder=False)
    sizes = {"crop": (64, 64), "penalty_crop": (40, 64)}
    optimizer, params = adam_with_l2(1e-4, 1e-5), student_params()
    _, losses = train_steps(
        NETWORKS,
        objective,
        optimizer,
        teacher_params=teacher_params(),
        data=data,
        state=TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32)),
        indices=chosen[None],
        pretraining_indices=others[None],
        key=jax.random.key(0),
        **sizes,
    )
    step_key = jax.random.fold_in(jax.random.key(0), 0)
    batch = take_batch(data, chosen, others, key=step_key, whole=False, **sizes)
    expected = compute_losses(
        NETWORKS, objective, teacher_params(), params=student_params(), batch=batch, key=step_key
    )
    np.testing.assert_allclose(losses.penalty, [expected.penalty], rtol=1e-3)
    np.testing.assert_allclose(losses.hard, [expected.hard], rtol=1e-3)


@pytest.mark.slow
def test_the_autoencoder_gets_whole_images_next_to_crops():
    images = noise(1, 0)
    given = {"params": student_params(), "key": jax.random.key(0)}
    objective = LossConfig(penalty=False)
    batches = Batch(images, None, None), Batch(images[:, 32:96, :64], None, None, images)
    whole, crops = (
        compute_losses(NETWORKS, objective, teacher_params(), batch=batch, **given)
        for batch in batches
    )
    for name in ("autoencoder", "student_autoencoder"):
        assert getattr(crops, name) == pytest.approx(float(getattr(whole, name)), rel=1e-4)
    assert crops.hard != whole.hard


@pytest.mark.slow
@pytest.mark.parametrize("has_ignored", [False, True])
def test_the_autoencoder_may_be_compared_in_parts(has_ignored):
    images, key = noise(2, 0), jax.random.key(3)
    values = np.zeros((24, 24), bool)
    values[:, ::3] = has_ignored
    params, pixels = student_params(), np.zeros(SIZE, bool)
    ignored = Ignored(pixels[None], values[None]) if has_ignored else None
    losses = compute_losses(
        NETWORKS,
        LossConfig(penalty=False),
        teacher_params(),
        params=params,
        batch=Batch(images, None, None, ignored=ignored),
        key=key,
        autoencoder_crop=(64, 96),
    )
    jitter_key, _, dropout_key = jax.random.split(key, 3)
    augmented = jitter(jitter_key, images / 255.0)
    x = ((augmented - IMAGENET_MEAN) / IMAGENET_STD).astype(jnp.float32)
    rngs = {"dropout": dropout_key}
    target = NETWORKS.teacher.apply(teacher_params(), x)
    predicted = NETWORKS.autoencoder.apply(params["autoencoder"], x, deterministic=False, rngs=rngs)
    second = NETWORKS.student.apply(params["student"], x)[..., CHANNELS:]
    # 64x96 pixels have 8x16 outputs. Each of the two images has one part.
    places = list(product(range(24 - 8 + 1), range(24 - 16 + 1)))

    def sums_of_parts(array):
        return np.array([array[i : i + 8, j : j + 16].sum() for i, j in places])

    def means_of_two_parts(differences):
        counted = np.square(differences, dtype=np.float64).sum(-1) * ~values
        first, other = (sums_of_parts(image) for image in counted)
        count = CHANNELS * sums_of_parts(~values)
        return (first[:, None] + other) / (count[:, None] + count)

    expected = means_of_two_parts(target - predicted), means_of_two_parts(predicted - second)
    found = losses.autoencoder, losses.student_autoencoder
    fits = [
        np.isclose(e, float(f), rtol=1e-5, atol=0) for e, f in zip(expected, found, strict=True)
    ]
    assert np.sum(fits[0] & fits[1]) == 1
    assert fits[0].sum() < fits[0].size / 100


@pytest.mark.slow
def test_many_steps_per_dispatch_and_cached_features_change_nothing():
    networks = create_networks("small", CHANNELS, SIZE, convolution="native")
    optimizer = adam_with_l2(1e-4, 1e-5)
    images = noise(3, 0)
    x = (images / 255.0 - IMAGENET_MEAN) / IMAGENET_STD
    features = jax.jit(networks.teacher.apply)(teacher_params(), x).astype(jnp.float16)
    objective = LossConfig(penalty=False, autoencoder=False)
    indices = np.array([[2], [1]], np.int32)
    params = student_params()

    def fresh():
        copied = jax.tree.map(jnp.array, params)
        return TrainState(copied, optimizer.init(copied), jnp.zeros((), jnp.int32))

    def steps(data, state, indices):
        return train_steps(
            networks,
            objective,
            optimizer,
            teacher_params=teacher_params(),
            data=data,
            state=state,
            indices=indices,
            pretraining_indices=np.zeros_like(indices),
            key=jax.random.key(1),
        )

    data = TrainData(images, None, None)
    together, losses = steps(data, fresh(), indices)
    state = fresh()
    for i in range(2):
        state, _ = steps(data, state, indices[i : i + 1])
    assert int(together.step) == int(state.step) == 2
    for a, b in zip(jax.tree.leaves(together.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    _, from_cache = steps(TrainData(images, features, None), fresh(), indices)
    np.testing.assert_allclose(from_cache.hard, losses.hard, rtol=2e-3)
    assert not np.array_equal(from_cache.hard, losses.hard)

"""Properties of every input: transforms, losses and metrics, on inputs that hypothesis finds."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from efficientad_jax.data.decoding import decode_image, decode_mask, resize_image
from efficientad_jax.detection.heatmap import color_indices, overlay
from efficientad_jax.detection.map_normalization import MapQuantiles, map_quantiles, normalize_map
from efficientad_jax.evaluation.metrics import evaluate, pixel_auroc
from efficientad_jax.networks.channel_statistics import channel_statistics
from efficientad_jax.networks.preprocessing import normalize_images, to_unit_range
from efficientad_jax.networks.resize import bilinear_matrix, resize_bilinear
from efficientad_jax.training.augmentation import grayscale, jitter, random_grayscale
from efficientad_jax.training.losses import (
    hard_feature_loss,
    hard_feature_mask,
    mean_squared_difference,
    pretraining_penalty,
    student_teacher_loss,
)

# Shapes are few, for each is compiled; values are any.
FEW = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
MANY = settings(FEW, max_examples=100)

# XLA takes subnormal numbers for zeros.
unit = st.floats(0, 1, width=32, allow_subnormal=False)
moderate = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)


def floats(shape, elements=moderate):
    return hnp.arrays(np.float32, shape, elements=elements)


images = floats((4, 5, 3), unit)
features = floats((1, 2, 2, 3))
maps = floats(st.sampled_from([(3, 4), (1, 1), (5, 2)]))


@FEW
@given(image=images)
def test_gray_is_between_the_channels_and_its_own_gray(image):
    gray = np.asarray(grayscale(jnp.asarray(image)))
    assert (gray >= image.min(-1, keepdims=True) - 1e-6).all()
    assert (gray <= image.max(-1, keepdims=True) + 1e-6).all()
    again = grayscale(jnp.asarray(gray.repeat(3, -1)))
    np.testing.assert_allclose(again, gray, atol=1e-6)


@pytest.mark.slow
@FEW
@given(image=images, seed=st.integers(0, 2**31 - 1))
def test_random_changes_follow_from_their_key(image, seed):
    batch, key = jnp.asarray(image[None]), jax.random.key(seed)
    for change in (jitter, lambda k, x: random_grayscale(k, x, 0.5)):
        changed = np.asarray(change(key, batch))
        np.testing.assert_array_equal(changed, change(key, batch))
        assert changed.min() >= 0
        assert changed.max() <= 1
    np.testing.assert_array_equal(random_grayscale(key, batch, 0.0), batch)


@FEW
@given(pixels=hnp.arrays(np.uint8, (3, 2, 3)))
def test_preprocessing_can_be_undone(pixels):
    x = to_unit_range(jnp.asarray(pixels))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    back = (np.asarray(normalize_images(x), np.float64) * std + mean) * 255
    np.testing.assert_allclose(back, pixels, atol=1e-3)


@MANY
@given(source=st.integers(1, 40), target=st.integers(1, 40))
def test_resizing_takes_means_and_mirrors_with_the_image(source, target):
    matrix = bilinear_matrix(source, target)
    assert matrix.min() >= 0
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(matrix[::-1, ::-1], matrix, atol=1e-5)
    if source == target:
        np.testing.assert_array_equal(matrix, np.eye(source))


@FEW
@given(x=floats((1, 4, 3, 2)))
def test_resized_maps_stay_within_their_range(x):
    resized = np.asarray(resize_bilinear(jnp.asarray(x), (7, 5)))
    margin = 1e-5 * np.abs(x).max()
    assert resized.min() >= x.min() - margin
    assert resized.max() <= x.max() + margin


@MANY
@given(
    pixels=hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
)
def test_resized_images_stay_within_their_range(pixels, height, width):
    resized = resize_image(pixels, height, width)
    assert resized.shape == (height, width, 3)
    assert resized.min() >= pixels.min()
    assert resized.max() <= pixels.max()


@MANY
@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.bool_]),
        st.one_of(
            st.tuples(st.integers(1, 5), st.integers(1, 5)),
            st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4)),
        ),
    )
)
def test_decoding_of_arrays(array):
    image = decode_image(array)
    assert image.dtype == np.uint8
    assert image.shape == (*array.shape[:2], 3)
    np.testing.assert_array_equal(decode_image(image), image)
    channels = array.reshape(*array.shape[:2], -1)
    first = channels[..., : 1 if channels.shape[2] < 3 else 3]
    np.testing.assert_array_equal(decode_mask(array), (first != 0).any(-1))


@MANY
@given(st.binary(max_size=200))
def test_decoding_of_any_bytes(content):
    from efficientad_jax.errors import InputError

    try:
        assert decode_image(content).ndim == 3
    except InputError as error:
        message = str(error)
        assert message.isprintable()
        assert message.startswith("image from bytes: ")


@FEW
@given(
    values=floats((24,), st.floats(0, 1e4, width=32, allow_subnormal=False)),
    p_hard=st.sampled_from([0.0, 0.5, 0.9]),
)
def test_the_hard_feature_loss_is_between_the_mean_and_the_largest(values, p_hard):
    loss = float(hard_feature_loss(jnp.asarray(values), p_hard))
    margin = 1e-5 * values.max()
    assert values.mean(dtype=np.float64) - margin <= loss <= values.max() + margin
    mask = np.asarray(hard_feature_mask(jnp.asarray(values), p_hard))
    # At least the share above the quantile, and with an element all that are larger.
    assert mask.sum() >= (1 - p_hard) * (values.size - 1)
    assert values[mask].min() >= values[~mask].max(initial=-1)


@FEW
@given(a=features, b=features)
def test_losses_are_not_negative_and_zero_for_equals(a, b):
    a, b = jnp.asarray(a), jnp.asarray(b)
    distance = float(mean_squared_difference(a, b))
    assert distance >= 0
    assert distance == pytest.approx(float(mean_squared_difference(b, a)), rel=1e-6)
    assert float(mean_squared_difference(a, a)) == 0
    assert float(student_teacher_loss(a, a, 0.9)) == 0
    assert float(student_teacher_loss(a, b, 0.0)) == pytest.approx(distance, rel=1e-5)
    assert float(student_teacher_loss(a, b, 0.9)) >= distance * (1 - 1e-5)
    assert float(pretraining_penalty(a)) == pytest.approx(
        float(mean_squared_difference(a, jnp.zeros_like(a))), rel=1e-6
    )


@FEW
@given(x=floats((3, 2, 2, 2)), cut=st.sampled_from([1, 2]))
def test_channel_statistics_do_not_depend_on_the_batches(x, cut):
    whole = channel_statistics([jnp.asarray(x)])
    parts = channel_statistics([jnp.asarray(x[:cut]), jnp.asarray(x[cut:])])
    scale = max(1e-3, float(np.abs(x).max()))
    np.testing.assert_allclose(parts.mean, whole.mean, atol=1e-5 * scale)
    assert (whole.std > 0).all()
    assert np.isfinite(whole.std).all()
    for channel in range(2):
        if channel not in whole.constant_channels and channel not in parts.constant_channels:
            exact = x[..., channel].astype(np.float64).std()
            assert whole.std[channel] == pytest.approx(exact, rel=1e-2, abs=1e-4 * scale)
            assert parts.std[channel] == pytest.approx(exact, rel=1e-2, abs=1e-4 * scale)


@MANY
@given(values=maps, q=st.sampled_from([(0.9, 0.995), (0.0, 1.0), (0.25, 0.5)]))
def test_quantiles_are_numpys(values, q):
    found = map_quantiles(values, *q)
    expected = np.quantile(values.astype(np.float64), q)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@FEW
@given(values=floats((3, 4)), a=moderate, width=st.floats(0.5, 1e3, width=32))
def test_normalization_keeps_the_order_and_sends_a_to_0(values, a, width):
    quantiles = MapQuantiles(a, a + width)
    normalized = np.asarray(normalize_map(jnp.asarray(values), quantiles)).ravel()
    order = np.argsort(values.ravel(), kind="stable")
    assert (np.diff(normalized[order]) >= 0).all()
    np.testing.assert_allclose(normalize_map(jnp.float32(a), quantiles), 0, atol=1e-4)
    np.testing.assert_allclose(normalize_map(jnp.float32(a + width), quantiles), 0.1, atol=1e-3)


scored = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float64, n, elements=st.integers(-5, 5).map(float)),
        hnp.arrays(np.int64, n, elements=st.integers(0, 1)),
    )
)


def literal_auroc(scores, labels):
    """Over all pairs: how often the anomalous one is higher, half for a tie."""
    pairs = [
        1.0 if a > g else 0.5 if a == g else 0.0
        for a in scores[labels == 1]
        for g in scores[labels == 0]
    ]
    return np.mean(pairs) if pairs else None


@MANY
@given(scored)
def test_image_figures(given_):
    scores, labels = given_
    found = evaluate(scores, labels)
    expected = literal_auroc(scores, labels)
    json.dumps(found.as_dict(), allow_nan=False)
    if expected is None:
        assert found.image_auroc is None
        assert found.image_reason
        return
    assert found.image_auroc == pytest.approx(expected)
    # Only the order of the scores counts; turned round, they are as wrong as they were right.
    assert evaluate(np.exp(scores), labels).image_auroc == pytest.approx(expected)
    assert evaluate(-scores, labels).image_auroc == pytest.approx(1 - expected)
    assert found.image_best_f1 is not None
    chosen = scores >= found.image_best_f1_threshold
    hits = np.sum(chosen & (labels == 1))
    assert found.image_best_f1 == pytest.approx(2 * hits / (chosen.sum() + labels.sum()))
    best = max(
        2 * np.sum((scores >= t) & (labels == 1)) / (np.sum(scores >= t) + labels.sum())
        for t in scores
    )
    assert found.image_best_f1 == pytest.approx(best)


@MANY
@given(
    st.lists(
        st.tuples(
            hnp.arrays(np.float32, (2, 3), elements=st.integers(-3, 3).map(float)),
            st.one_of(st.none(), hnp.arrays(np.bool_, (2, 3))),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_pixel_figures(pairs):
    scores = np.concatenate([m.ravel() for m, _ in pairs])
    empty = np.zeros((2, 3), bool)
    labels = np.concatenate([(empty if k is None else k).ravel() for _, k in pairs]).astype(int)
    found = pixel_auroc([m for m, _ in pairs], [mask for _, mask in pairs])
    expected = literal_auroc(scores, labels)
    assert found == (None if expected is None else pytest.approx(expected))


@MANY
@given(
    image=hnp.arrays(np.uint8, (3, 2, 3)),
    heat=floats((3, 2)),
    low=st.floats(-10, 10),
    width=st.floats(0.01, 10),
)
def test_heat_maps(image, heat, low, width):
    indices = color_indices(heat, low, low + width)
    assert (indices[heat <= low] == 0).all()
    assert (indices[heat >= low + width] == 255).all()
    order = np.argsort(heat.ravel())
    assert (np.diff(indices.ravel()[order].astype(int)) >= 0).all()
    painted = overlay(image, heat, low=low, high=low + width)
    np.testing.assert_array_equal(painted[heat <= low], image[heat <= low])

"""Algorithm 2 against NumPy, calibration, and what happens at the borders."""

from functools import partial

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax import InputError, MapQuantiles
from efficientad_jax.config import Config
from efficientad_jax.detection.calibration import calibrate
from efficientad_jax.detection.inference import Calibration, DetectorParams, detect, raw_maps
from efficientad_jax.errors import DivergenceError
from efficientad_jax.networks.model import create_networks
from efficientad_jax.networks.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from efficientad_jax.networks.teacher import Teacher
from efficientad_jax.training.teacher_features import normalize_over_images
from tests.helpers.detectors import random_params
from tests.helpers.images import uint8_images

SIZE = (128, 160)
NETWORKS = create_networks("small", 6, SIZE, convolution="direct")
CALIBRATION = Calibration(MapQuantiles(0.5, 2.0), MapQuantiles(0.2, 1.0))


def detector_params():
    return DetectorParams(*(random_params(n, SIZE, seed=i) for i, n in enumerate(NETWORKS)))


def literal_maps(params, images):
    x = (images / np.float32(255) - IMAGENET_MEAN) / IMAGENET_STD
    teacher, student, predicted = (
        np.asarray(network.apply(p, jnp.asarray(x, jnp.float32)), np.float64)
        for network, p in zip(NETWORKS, params[:3], strict=True)
    )
    local = ((teacher - student[..., :6]) ** 2).mean(-1)
    return local, ((predicted - student[..., 6:]) ** 2).mean(-1)


@pytest.mark.slow
def test_maps_and_scores_are_those_of_algorithm_2():
    params, images = detector_params(), uint8_images(size=SIZE)
    local, global_ = literal_maps(params, images)
    assert local.shape == (1, 24, 32)
    local = 0.1 * (local - 0.5) / 1.5
    global_ = 0.1 * (global_ - 0.2) / 0.8
    combined = 0.5 * local + 0.5 * global_
    found = detect(NETWORKS, params, CALIBRATION, jnp.asarray(images))
    inside = (slice(None), slice(4, -4), slice(4, -4))
    assert found.combined.shape == (1, 32, 40)
    assert found.global_ is not None
    np.testing.assert_allclose(found.local[inside], local, rtol=1e-4)
    np.testing.assert_allclose(found.global_[inside], global_, rtol=1e-4)
    np.testing.assert_allclose(found.combined[inside], combined, rtol=1e-4)
    np.testing.assert_allclose(found.scores, combined.max((1, 2)), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("values", [10, 500, 5000])
def test_a_score_may_be_the_mean_of_the_highest_values(values):
    params, images = detector_params(), uint8_images(3, SIZE)
    calibration, scores, _ = calibrate(NETWORKS, params, images, score_values=values)
    found = detect(NETWORKS, params, calibration, jnp.asarray(images))
    inside = np.asarray(found.combined)[:, 4:-4, 4:-4].reshape(3, -1)
    expected = np.sort(inside, axis=1)[:, -values:].mean(1)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    assert (expected < inside.max(1)).all()


def test_the_margin_is_zero_and_not_below_normal():
    found = detect(NETWORKS, detector_params(), CALIBRATION, jnp.asarray(uint8_images(size=SIZE)))
    margin = np.asarray(found.combined).copy()
    margin[:, 4:-4, 4:-4] = np.nan
    assert np.nanmax(np.abs(margin)) == 0


@pytest.mark.slow
def test_quantiles_are_taken_before_padding_and_resizing():
    params, images = detector_params(), uint8_images(2, SIZE)
    local, global_ = literal_maps(params, images)
    found, *_ = calibrate(NETWORKS, params, images)
    assert found.global_ is not None
    expected = [np.quantile(m, q) for m in (local, global_) for q in (0.9, 0.995)]
    np.testing.assert_allclose([*found.local, *found.global_], expected, rtol=1e-4)
    padded = np.pad(local, ((0, 0), (4, 4), (4, 4)))
    assert abs(np.quantile(padded, 0.9) / expected[0] - 1) > 0.01


def test_upsampling_first_is_a_switch():
    params, images = detector_params(), uint8_images(size=SIZE)
    first, *_ = calibrate(NETWORKS, params, images, upsample_first=True)
    found = detect(NETWORKS, params, first, jnp.asarray(images))
    assert found.combined.shape == (1, *SIZE)
    np.testing.assert_allclose(found.scores, np.asarray(found.combined).max((1, 2)))
    assert first.local != calibrate(NETWORKS, params, images)[0].local


def test_without_an_autoencoder_the_local_map_is_all():
    params = detector_params()._replace(autoencoder=None)
    calibration, *_ = calibrate(NETWORKS, params, uint8_images(size=SIZE))
    found = detect(NETWORKS, params, calibration, jnp.asarray(uint8_images(size=SIZE)))
    assert found.global_ is None
    np.testing.assert_array_equal(found.combined, found.local)


def test_normalization_can_be_switched_off():
    params, images = detector_params(), uint8_images(size=SIZE)
    off, scores, _ = calibrate(NETWORKS, params, images, normalize=False)
    local, global_ = literal_maps(params, images)
    found = detect(NETWORKS, params, off, jnp.asarray(images))
    np.testing.assert_allclose(found.scores, (0.5 * local + 0.5 * global_).max((1, 2)), rtol=1e-4)
    np.testing.assert_allclose(scores, found.scores, rtol=1e-4)


@pytest.mark.slow
def test_a_batch_image_by_image_is_the_batch():
    products = create_networks("small", 2, SIZE, convolution="products")
    params = DetectorParams(*(random_params(n, SIZE, seed=i) for i, n in enumerate(products)))
    params = params._replace(autoencoder=None)
    images = jnp.asarray(uint8_images(2, SIZE))
    direct = create_networks("small", 2, SIZE, convolution="direct")
    ours = jax.jit(lambda x: raw_maps(products, params, x).local)(images)
    np.testing.assert_allclose(ours, raw_maps(direct, params, images).local, rtol=1e-3, atol=1e-4)


def imitating_detector():
    """A student that is its teacher on every image, but for constant differences."""
    teacher = random_params(NETWORKS.teacher, SIZE)
    student = random_params(NETWORKS.student, SIZE)
    for name, layer in teacher["params"].items():
        copied = student["params"][name]
        for part, value in layer.items():
            copied[part] = jnp.concatenate([value, value], -1) if name == "conv4" else value
    return DetectorParams(teacher, student, None)


def test_constant_maps_are_reported_and_not_divided_by():
    with pytest.raises(InputError, match="local maps of all 1 validation images are constant"):
        calibrate(NETWORKS, imitating_detector(), uint8_images(size=SIZE))


def test_maps_that_are_not_finite_are_reported():
    params = detector_params()
    params = params._replace(student=jax.tree.map(lambda x: x * 1e30, params.student))
    with pytest.raises(DivergenceError, match="local maps of the validation images are not finite"):
        calibrate(NETWORKS, params, uint8_images(size=SIZE))


def test_a_constant_channel_of_the_teacher_is_reported_and_not_divided_by(caplog):
    params = detector_params().teacher
    last = params["params"]["conv4"]
    last["kernel"] = last["kernel"].at[..., 3].set(0)
    last["bias"] = last["bias"].at[3].set(5.0)
    teacher = Teacher("small", 6, params, {})
    normalized, features = normalize_over_images(
        NETWORKS.teacher, teacher, uint8_images(2, SIZE), config=Config(), disk_cache_gb=0.0
    )
    assert "1 of 6 channels are constant on all training images (3)" in caplog.text
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((normalized, features)))
    np.testing.assert_array_equal(features[..., 3], 0)


def test_a_defect_20_pixels_from_the_border_is_seen_there():
    # The student answers a plain gray image exactly; the teacher's first layer differs on red.
    params = imitating_detector()
    layers = params.student["params"]
    blind = layers["conv1"] | {"kernel": layers["conv1"]["kernel"].at[:, :, 0].set(0)}
    params = params._replace(student={"params": layers | {"conv1": blind}})
    images = np.full((1, *SIZE, 3), 124, np.uint8)
    plain = np.asarray(raw_maps(NETWORKS, params, jnp.asarray(images)).local)
    images[0, 60:64, 20:24, 0] = 255
    calibration = Calibration(MapQuantiles(float(plain.max()), float(plain.max()) + 1.0), None)
    found = detect(NETWORKS, params, calibration, jnp.asarray(images))
    row, column = np.unravel_index(np.argmax(found.combined[0]), found.combined.shape[1:])
    assert found.scores[0] > 0
    assert abs(4 * row + 2 - 62) <= 16
    assert abs(4 * column + 2 - 22) <= 16


def precisions(function, *arguments):
    """The precisions of all products and convolutions that a function computes."""
    found = set()

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("dot_general", "conv_general_dilated"):
                found.add(equation.params["precision"])
            for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
                if is_jaxpr(value):
                    visit(getattr(value, "jaxpr", value))

    def is_jaxpr(value):
        return isinstance(value, jax.extend.core.Jaxpr | jax.extend.core.ClosedJaxpr)

    visit(jax.make_jaxpr(function)(*arguments).jaxpr)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("convolution", ["direct", "products"])
@pytest.mark.parametrize("upsample_first", [False, True])
def test_detection_and_calibration_round_no_float32_factors_on_any_device(
    convolution, upsample_first
):
    networks = create_networks("small", 6, SIZE, convolution=convolution)
    params, images = detector_params(), jnp.asarray(uint8_images(2, SIZE))
    highest = {(jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)}
    maps = partial(raw_maps, networks, params, upsample_first=upsample_first)
    calibration = CALIBRATION._replace(upsample_first=upsample_first)
    assert precisions(maps, images) == highest
    assert precisions(partial(detect, networks, params, calibration), images) == highest


def test_other_dtypes_and_training_keep_the_default_precision():
    rounding = create_networks("small", 6, SIZE, convolution="direct", dtype="bfloat16")
    params, images = detector_params(), jnp.asarray(uint8_images(1, SIZE))
    assert precisions(partial(raw_maps, rounding, params), images) == {None}
    x = jnp.zeros((1, *SIZE, 3))
    assert precisions(partial(NETWORKS.student.apply, params.student), x) == {None}

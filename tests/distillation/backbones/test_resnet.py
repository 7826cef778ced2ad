import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from efficientad_jax.distillation.backbones.patches import patch_features
from efficientad_jax.distillation.backbones.resnet import (
    ARCHITECTURES,
    ResNet,
    convert_resnet,
    load_packaged_resnet18,
    load_resnet,
    packaged_resnet18,
    preprocess,
    preprocess_packaged,
)
from efficientad_jax.errors import InputError

torch = pytest.importorskip("torch", reason="the reference is PyTorch: pip install torch")
nn = torch.nn


class Bottleneck(nn.Module):
    """torchvision's block: the stride is that of the 3x3 convolution."""

    def __init__(self, channels, planes, stride, groups_width):
        super().__init__()
        wide, out = planes * groups_width // 64, planes * 4
        self.conv1 = nn.Conv2d(channels, wide, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.conv3 = nn.Conv2d(wide, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = None
        if stride != 1 or channels != out:
            conv = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(out))

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class BasicBlock(nn.Module):
    """torchvision's block of ResNet-18 and -34."""

    def __init__(self, channels, planes, stride, groups_width):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride != 1 or channels != planes:
            conv = nn.Conv2d(channels, planes, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(planes))

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Reference(nn.Module):
    """The published ResNet as far as layer3, under torchvision's names."""

    def __init__(self, blocks=(3, 4, 23), width=128, block=Bottleneck):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for i, (count, planes, stride) in enumerate(
            zip(blocks, (64, 128, 256), (1, 2, 2), strict=True)
        ):
            layer = []
            for j in range(count):
                layer.append(block(channels, planes, stride if j == 0 else 1, width))
                channels = planes * (4 if block is Bottleneck else 1)
            setattr(self, f"layer{i + 1}", nn.Sequential(*layer))

    def forward(self, x):
        x = torch.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        second = self.layer2(self.layer1(x))
        return second, self.layer3(second)


REFERENCES = {
    "resnet18": ((2, 2, 2), 64, BasicBlock),
    "resnet34": ((3, 4, 6), 64, BasicBlock),
    "resnet50": ((3, 4, 6), 64, Bottleneck),
    "resnet101": ((3, 4, 23), 64, Bottleneck),
    "wide_resnet50": ((3, 4, 6), 128, Bottleneck),
    "wide_resnet101": ((3, 4, 23), 128, Bottleneck),
}


def make_reference(architecture):
    torch.manual_seed(0)
    network = Reference(*REFERENCES[architecture]).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


@pytest.fixture(scope="module")
def reference():
    return make_reference("wide_resnet101")


@pytest.fixture(scope="module")
def state(reference):
    return {name: value.numpy() for name, value in reference.state_dict().items()}


def reference_patch_features(maps, channels=384):
    """The paper's phase 1 literally: 3x3 patches, resize, 1024 each, concatenate, 384."""
    functional = nn.functional
    height, width = maps[0].shape[2:]
    pooled = []
    for x in maps:
        patches = functional.unfold(x, 3, padding=1).unflatten(2, x.shape[2:])
        patches = functional.interpolate(patches, (height, width), mode="bilinear")
        rows = patches.permute(0, 2, 3, 1).flatten(0, 2)
        pooled.append(functional.adaptive_avg_pool1d(rows[:, None], 1024)[:, 0])
    rows = torch.cat(pooled, 1)
    rows = functional.adaptive_avg_pool1d(rows[:, None], channels)[:, 0]
    return rows.reshape(-1, height, width, channels)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["direct", "auto"])
def test_maps_and_patch_features_are_those_of_pytorch(reference, state, method):
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        x = ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)
        maps = reference(x)
        features = reference_patch_features(maps)
    params = convert_resnet(state, "wide_resnet101")

    @jax.jit
    def compute_features(params, images):
        maps = ResNet("wide_resnet101", method).apply(params, preprocess(images))
        return *maps, patch_features(maps, 384)

    expected = [*(m.permute(0, 2, 3, 1) for m in maps), features]
    for ours, theirs in zip(compute_features(params, jnp.asarray(images)), expected, strict=True):
        theirs = theirs.numpy()
        assert ours.shape == theirs.shape
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        assert error < 1e-5
    assert expected[0].shape == (1, 8, 12, 512)
    assert expected[1].shape == (1, 4, 6, 1024)


@pytest.mark.slow
def test_a_file_of_either_kind_with_or_without_the_last_layers(reference, state, tmp_path):
    whole = reference.state_dict() | {
        "layer4.0.conv1.weight": torch.zeros(1024, 1024, 1, 1),
        "fc.weight": torch.zeros(1000, 2048),
    }
    torch.save(whole, tmp_path / "weights.pth")
    save_file(state, tmp_path / "weights.safetensors")
    read = [
        load_resnet(str(tmp_path / f"weights.{kind}"), "wide_resnet101")
        for kind in ("pth", "safetensors")
    ]
    for a, b in zip(*map(jax.tree.leaves, read), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_weights_of_another_network_are_refused_in_one_line(state, tmp_path):
    others = {
        "layer1.0.conv1.weight has shape (64, 64, 1, 1), expected (128, 64, 1, 1)": Reference(
            (3, 4, 6), 64
        ),
        "layer3.6.conv1.weight missing": Reference((3, 4, 6), 128),  # WideResNet-50-2
        "layer3.23.conv1.weight of shape (512, 1024, 1, 1) not expected": Reference(
            (3, 4, 24), 128
        ),
    }
    path = tmp_path / "weights.pth"
    for message, network in others.items():
        torch.save(network.state_dict(), path)
        with pytest.raises(InputError) as info:
            load_resnet(str(path), "wide_resnet101")
        assert message in str(info.value)
        assert f"config.backbone_weights = {str(path)!r}" in str(info.value)
        assert "\n" not in str(info.value)


def test_no_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.backbone_weights is empty"):
        load_resnet("", "wide_resnet101")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        load_resnet(str(tmp_path / "none.safetensors"), "resnet50")
    with pytest.raises(InputError, match="no such file"):
        load_resnet(str(tmp_path / "none.pth"), "resnet50")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "wide_resnet101"])
def test_the_maps_of_every_architecture_are_those_of_pytorch(architecture):
    network = make_reference(architecture)
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        x = ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)
        expected = [m.permute(0, 2, 3, 1).numpy() for m in network(x)]
    state = {name: value.numpy() for name, value in network.state_dict().items()}
    params = convert_resnet(state, architecture)
    maps = jax.jit(lambda p, x: ResNet(architecture).apply(p, preprocess(x)))(params, images)
    for ours, theirs in zip(maps, expected, strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


def packaged_reference(state, images):
    """The packaged network by PyTorch's functions, padded as its original is."""
    functional = nn.functional

    def convolve(x, name, stride, pads):
        top, left, bottom, right = pads
        x = functional.pad(x, (left, right, top, bottom))
        weight, bias = (torch.from_numpy(state[f"{name}.{part}"]) for part in ("weight", "bias"))
        return functional.conv2d(x, weight, bias, stride)

    x = torch.from_numpy(images).float() - torch.tensor([123.152, 115.903, 103.063])
    x = torch.relu(convolve(x.permute(0, 3, 1, 2), "conv1", 2, (3, 3, 2, 2)))
    x = functional.max_pool2d(functional.pad(x, (1, 0, 1, 0)), 3, 2)
    maps = []
    for layer in ("layer1", "layer2", "layer3"):
        for j in (0, 1):
            strides = 2 if j == 0 and layer != "layer1" else 1
            pads = (1, 1, 0, 0) if strides == 2 else (1, 1, 1, 1)
            y = torch.relu(convolve(x, f"{layer}.{j}.conv1", strides, pads))
            y = convolve(y, f"{layer}.{j}.conv2", 1, (1, 1, 1, 1))
            skip = x if strides == 1 else convolve(x, f"{layer}.{j}.downsample", 2, (0, 0, 0, 0))
            x = torch.relu(y + skip)
        maps.append(x)
    return [m.permute(0, 2, 3, 1).numpy() for m in maps[1:]]


def packaged_maps(images):
    run = jax.jit(lambda p, x: ResNet("resnet18").apply(p, preprocess_packaged(x)))
    return run(load_packaged_resnet18(), images)


def test_the_packaged_resnet18_is_computed_as_its_original_is():
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
    state = {k: v.astype(np.float32) for k, v in load_file(packaged_resnet18()).items()}
    for ours, theirs in zip(packaged_maps(images), packaged_reference(state, images), strict=True):
        assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


def test_the_packaged_resnet18_is_the_original_in_float16(data_root):
    """The original takes BGR: the channels of its first kernel are in reverse order."""
    original = data_root.parent / "backbones" / "resnet18.safetensors"
    if not original.is_file():
        pytest.skip(f"needs the original weights: {original}")
    state = load_file(original)
    state["conv1.weight"] = state["conv1.weight"][:, ::-1].copy()
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
    for ours, theirs in zip(packaged_maps(images), packaged_reference(state, images), strict=True):
        assert np.abs(ours - theirs).max() < 2e-3 * np.abs(theirs).max()

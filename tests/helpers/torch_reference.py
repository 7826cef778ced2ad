"""PyTorch builds of the paper's tables, written independently of the package's own."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference is PyTorch: pip install -e '.[test]'")
F = torch.nn.functional


def torch_params(params):
    """Kernel and bias of each layer as PyTorch has them, to be trained."""

    def tensor(array, axes):
        return torch.from_numpy(np.asarray(array).transpose(axes).copy()).requires_grad_()

    return {
        name: (tensor(layer["kernel"], (3, 2, 0, 1)), tensor(layer["bias"], (0,)))
        for name, layer in params["params"].items()
    }


def torch_pdn(params, x, size, padding):
    """The PDN, layer by layer; `params` from `torch_params`."""
    p = int(padding)

    def conv(name, x, pad):
        return F.conv2d(x, *params[name], padding=pad)

    x = F.avg_pool2d(F.relu(conv("conv1", x, 3 * p)), 2, 2, padding=p, count_include_pad=True)
    x = F.avg_pool2d(F.relu(conv("conv2", x, 3 * p)), 2, 2, padding=p, count_include_pad=True)
    if size == "small":
        return conv("conv4", F.relu(conv("conv3", x, p)), 0)
    x = F.relu(conv("conv4", F.relu(conv("conv3", x, 0)), p))
    return conv("conv6", F.relu(conv("conv5", x, 0)), 0)


def torch_autoencoder(params, x, output):
    """The autoencoder, in evaluation mode; `params` from `torch_params`."""
    height, width = x.shape[2:]

    def conv(name, x, stride=1, pad=0):
        return F.conv2d(x, *params[name], stride=stride, padding=pad)

    def resize(x, size):
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    for i in range(1, 6):
        x = F.relu(conv(f"enconv{i}", x, stride=2, pad=1))
    x = conv("enconv6", x)
    sizes = [
        (height // 64 - 1, width // 64 - 1),
        (height // 32, width // 32),
        (height // 16 - 1, width // 16 - 1),
        (height // 8, width // 8),
        (height // 4 - 1, width // 4 - 1),
        (height // 2 - 1, width // 2 - 1),
    ]
    for i, size in enumerate(sizes, start=1):
        x = F.relu(conv(f"deconv{i}", resize(x, size), pad=2))
    x = F.relu(conv("deconv7", resize(x, output), pad=1))
    return conv("deconv8", x, pad=1)


def to_torch(x):
    """NHWC to NCHW."""
    return torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())

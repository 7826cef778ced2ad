"""EfficientAD in PyTorch, written as is usual there; the models of the other peers derive from it.

This module needs PyTorch (the extra `bench`) and does not import JAX, because the memory and the
start-up of PyTorch are measured in a process without it.
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

# Kernels `[kh, kw, in, out]` and biases by name, such as 'teacher/conv1/kernel'; the quantiles of
# both maps, 'local' and 'global'; ImageNet's 'mean' and 'std'.
Weights = Mapping[str, np.ndarray]


class Interpolate(nn.Module):
    """Bilinear resizing to a fixed size."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Resizes images `[n, c, h, w]`."""
        return functional.interpolate(x, self.size, mode="bilinear", align_corners=False)


def pdn(size: str, channels: int) -> nn.Sequential:
    """The PDN of Table 1 (small) or Table 6 (medium), without padding."""
    if size == "small":
        return nn.Sequential(
            *(nn.Conv2d(3, 128, 4), nn.ReLU(), nn.AvgPool2d(2, 2)),
            *(nn.Conv2d(128, 256, 4), nn.ReLU(), nn.AvgPool2d(2, 2)),
            *(nn.Conv2d(256, 256, 3), nn.ReLU(), nn.Conv2d(256, channels, 4)),
        )
    return nn.Sequential(
        *(nn.Conv2d(3, 256, 4), nn.ReLU(), nn.AvgPool2d(2, 2)),
        *(nn.Conv2d(256, 512, 4), nn.ReLU(), nn.AvgPool2d(2, 2)),
        *(nn.Conv2d(512, 512, 1), nn.ReLU(), nn.Conv2d(512, 512, 3), nn.ReLU()),
        *(nn.Conv2d(512, channels, 4), nn.ReLU(), nn.Conv2d(channels, channels, 1)),
    )


def autoencoder(channels: int, height: int, width: int) -> nn.Sequential:
    """The autoencoder of Table 7 for images of this size."""
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 32), (32, 64), (64, 64), (64, 64)):
        layers += [nn.Conv2d(before, after, 4, 2, 1), nn.ReLU()]
    layers.append(nn.Conv2d(64, 64, (height // 32, width // 32)))
    for part, minus in ((64, 1), (32, 0), (16, 1), (8, 0), (4, 1), (2, 1)):
        layers.append(Interpolate((height // part - minus, width // part - minus)))
        layers += [nn.Conv2d(64, 64, 4, 1, 2), nn.ReLU(), nn.Dropout(0.2)]
    layers.append(Interpolate((height // 4 - 8, width // 4 - 8)))
    layers += [nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU(), nn.Conv2d(64, channels, 3, 1, 1)]
    return nn.Sequential(*layers)


def load_weights(network: nn.Sequential, weights: Weights, prefix: str) -> nn.Sequential:
    """Copies the weights with a prefix into a network whose layers have the same order."""
    convolutions = [layer for layer in network if isinstance(layer, nn.Conv2d)]
    names = {name.split("/")[1] for name in weights if name.startswith(f"{prefix}/")}
    ordered = sorted(names, key=lambda name: (name.startswith("deconv"), name))
    with torch.no_grad():
        for convolution, name in zip(convolutions, ordered, strict=True):
            kernel = weights[f"{prefix}/{name}/kernel"].transpose(3, 2, 0, 1).copy()
            convolution.weight.copy_(torch.from_numpy(kernel))
            assert convolution.bias is not None
            convolution.bias.copy_(torch.from_numpy(np.array(weights[f"{prefix}/{name}/bias"])))
    return network


class EfficientAD(nn.Module):
    """From uint8 images `[n, h, w, 3]` to combined maps `[n, h // 4, w // 4]` (Algorithm 2)."""

    def __init__(self, size: str, weights: Weights, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.channels = 384
        self.teacher = load_weights(pdn(size, self.channels), weights, "teacher")
        self.student = load_weights(pdn(size, 2 * self.channels), weights, "student")
        self.autoencoder = load_weights(
            autoencoder(self.channels, *image_size), weights, "autoencoder"
        )
        self.local, self.global_ = weights["local"].tolist(), weights["global"].tolist()
        self.mean = nn.Buffer(torch.tensor(weights["mean"]).view(1, 3, 1, 1))
        self.std = nn.Buffer(torch.tensor(weights["std"]).view(1, 3, 1, 1))

    def normalized(self, images: Tensor) -> Tensor:
        """Uint8 NHWC to ImageNet-normalized NCHW of the networks' dtype."""
        x = images.permute(0, 3, 1, 2).to(self.mean.dtype) / 255
        return (x - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """The combined maps, padded so that each value lies at the center of its patch."""
        x = self.normalized(images)
        teacher, student, predicted = self.teacher(x), self.student(x), self.autoencoder(x)
        local = (teacher - student[:, : self.channels]).square().mean(1)
        global_ = (predicted - student[:, self.channels :]).square().mean(1)
        a, b = self.local
        combined = 0.5 * 0.1 * (local - a) / (b - a)
        a, b = self.global_
        return functional.pad(combined + 0.5 * 0.1 * (global_ - a) / (b - a), (4, 4, 4, 4))


class TrainStep(nn.Module):
    """The sum of the losses of a step (Algorithm 1, lines 12-32), including the penalty.

    It is given augmented images, so that both sides of a comparison use the same ones.
    """

    def __init__(self, model: EfficientAD, p_hard: float = 0.999) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.p_hard = p_hard
        self.model.teacher.requires_grad_(False)
        self.model.train()

    def forward(self, images: Tensor, augmented: Tensor, photographs: Tensor) -> Tensor:
        """The sum of the losses for one image of each."""
        m = self.model
        x, x_augmented = m.normalized(images), m.normalized(augmented)
        with torch.no_grad():
            target, target_augmented = m.teacher(x), m.teacher(x_augmented)
        differences = (target - m.student(x)[:, : m.channels]).square().flatten()
        # Values at or above the quantile; topk is far faster than torch.quantile, which sorts.
        hard = differences.topk(
            differences.numel() - int(self.p_hard * (differences.numel() - 1)) - 1
        )
        penalty = m.student(m.normalized(photographs))[:, : m.channels].square().mean()
        predicted = m.autoencoder(x_augmented)
        autoencoder = (target_augmented - predicted).square().mean()
        imitation = (predicted - m.student(x_augmented)[:, m.channels :]).square().mean()
        return hard.values.mean() + penalty + autoencoder + imitation


def create_optimizer(step: TrainStep) -> Any:
    """The paper's Adam, fused: one kernel updates all parameters."""
    parameters = [p for p in step.parameters() if p.requires_grad]
    return torch.optim.Adam(parameters, lr=1e-4, weight_decay=1e-5, fused=True)

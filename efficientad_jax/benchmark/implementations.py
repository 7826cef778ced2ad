"""Ways to run one detector: each a function from uint8 images on the host to maps on the host.

All have the same weights, float32 (or the dtype that is asked for) and every core of the process.
"""

import importlib.util
import platform
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from efficientad_jax.benchmark.peers import (
    PEERS,
    WEIGHTS_FILE,
    Detect,
    cores,
    open_peer,
    write_models,
)
from efficientad_jax.benchmark.weights import named_weights
from efficientad_jax.convolution import Method
from efficientad_jax.detection.inference import (
    Calibration,
    DetectorParams,
    jitted_detect,
    prepared_params,
)
from efficientad_jax.detection.map_normalization import MapQuantiles
from efficientad_jax.errors import InputError
from efficientad_jax.networks.model import create_networks
from efficientad_jax.networks.pdn import Size

OURS = "efficientad_jax"
LAX = "jax, lax.conv"
# Ours makes several train steps a call, as training does.
STEPS_PER_CALL = 4


def installed_peers() -> dict[str, bool]:
    """Which of the peers can be measured here."""
    return {
        name: importlib.util.find_spec(module) is not None
        and importlib.util.find_spec("torch") is not None
        for name, module in PEERS.items()
    }


@cache
def random_detector(size: Size, image_size: tuple[int, int]) -> tuple[DetectorParams, Calibration]:
    """Weights and quantiles: which ones they are makes no difference to the time."""
    networks = create_networks(size, 384, image_size, convolution="direct")
    image = jnp.zeros((1, *image_size, 3))
    params = DetectorParams(
        *(jax.jit(network.init)(jax.random.key(i), image) for i, network in enumerate(networks))
    )
    return params, Calibration(MapQuantiles(0.5, 4.5), MapQuantiles(0.4, 3.4))


def build(
    name: str, size: Size, image_size: tuple[int, int], dtype: str, batch: int, folder: Path
) -> Detect:
    """One of the implementations, ready to be called with `batch` images.

    Args:
      name: one of `OURS`, `LAX` and `PEERS`.
      size: of the networks.
      image_size: height and width of images.
      dtype: of the computation.
      batch: images a call.
      folder: what `write_detector` left; ours does not read it.

    Raises:
      InputError: there is none of this name, or it is not installed.
    """
    if name in (OURS, LAX):
        method = "auto" if name == OURS else "direct"
        return our_detector(*random_detector(size, image_size), size, image_size, dtype, method)
    if name not in PEERS:
        raise InputError(f"{name!r}: expected one of {', '.join((OURS, LAX, *PEERS))}")
    if not installed_peers()[name]:
        raise InputError(f"{name}: not installed, pip install -e '.[bench]'")
    return open_peer(name, folder, size, image_size, dtype, batch)


def our_detector(
    params: DetectorParams,
    calibration: Calibration,
    size: Size,
    image_size: tuple[int, int],
    dtype: str,
    method: Method,
) -> Detect:
    """This project, with its own convolutions ('auto') or XLA's ('direct')."""
    networks = create_networks(size, 384, image_size, dtype=dtype, convolution=method)
    ready = prepared_params(networks, jax.device_put(params), image_size)

    def detect(images: np.ndarray) -> np.ndarray:
        return np.asarray(jitted_detect(networks, ready, calibration, images).combined)

    return detect


def write_detector(
    folder: Path, names: list[str], size: Size, image_size: tuple[int, int], batch: int
) -> None:
    """Writes the random detector for peers: its weights, and the models made of them."""
    weights = named_weights(*random_detector(size, image_size))
    np.savez(folder / WEIGHTS_FILE, **weights)  # pyright: ignore[reportArgumentType]
    write_models(folder, names, size, image_size, batch)


def train_step_of(name: str, size: Size, image_size: tuple[int, int]) -> Callable[[], Any]:
    """One optimiser step of Algorithm 1 on an image, its augmented copy and a photograph.

    Teacher features are computed in the step: none are cached. Dropout is on.

    Raises:
      InputError: there is none of this name, or it is not installed.
    """
    params, calibration = random_detector(size, image_size)
    if name in (OURS, LAX):
        return _our_train_step(name, size, image_size, params)
    if name not in ("pytorch eager", "torch.compile"):
        raise InputError(f"{name!r}: trains nothing, expected {OURS}, {LAX}, pytorch eager, ...")
    import torch

    from efficientad_jax.benchmark.torch_networks import EfficientAD, TrainStep, optimizer_of

    weights = named_weights(params, calibration)
    losses: Any = TrainStep(EfficientAD(size, weights, *image_size))
    optimizer = optimizer_of(losses)
    forward = torch.compile(losses) if name == "torch.compile" else losses
    images = [torch.from_numpy(image) for image in random_images(3, image_size)[:, None]]

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        total = forward(*images)
        total.backward()
        optimizer.step()
        return total.item()

    return step


def _our_train_step(
    name: str, size: Size, image_size: tuple[int, int], params: DetectorParams
) -> Callable[[], Any]:
    from efficientad_jax.config import LossConfig
    from efficientad_jax.optimizer import adam_with_l2
    from efficientad_jax.training.step import TrainData, TrainState, train_steps

    method = "auto" if name == OURS else "direct"
    networks = create_networks(size, 384, image_size, convolution=method)
    optimizer = adam_with_l2(1e-4, 1e-5)
    # Copied: a step gives its state's arrays up, and the others start from the same weights.
    trained: Any = jax.tree.map(
        jnp.copy, {"student": params.student, "autoencoder": params.autoencoder}
    )
    images = jnp.asarray(random_images(2, image_size))
    data = TrainData(images[:1], None, images[1:])
    state = TrainState(trained, optimizer.init(trained), jnp.zeros((), jnp.int32))
    # Several steps a dispatch is how training runs; what is told is the time of one.
    chosen = jnp.zeros((STEPS_PER_CALL, 1), jnp.int32)
    run = partial(
        train_steps,
        networks,
        LossConfig(),
        optimizer,
        teacher_params=params.teacher,
        data=data,
        indices=chosen,
        pretraining_indices=chosen,
        key=jax.random.key(0),
    )

    def step() -> float:
        nonlocal state
        state, losses = run(state=state)
        return float(losses.total[-1])

    return step


def random_images(count: int, image_size: tuple[int, int]) -> UInt8[np.ndarray, "n h w 3"]:
    """Noise: what the images show makes no difference to the time."""
    return np.random.default_rng(0).integers(0, 256, (count, *image_size, 3), np.uint8)


def processor() -> str:
    """What the figures were taken on."""
    if jax.default_backend() != "cpu":
        return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    name, vectors = platform.processor() or platform.machine(), ""
    lines = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    for line in lines.splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
        if line.startswith("flags"):
            vectors = next((v for v in ("avx512f", "avx2", "avx") if v in line.split()), "")
    return " ".join(part for part in (f"{cores()} cores of {name}", vectors) if part)

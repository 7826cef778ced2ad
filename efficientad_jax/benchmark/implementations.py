"""The implementations that are compared: this package, JAX with XLA's convolution, and the peers.

Each is a function from uint8 images on the host to maps on the host. All use the same weights, the
same dtype and all cores of the process.
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
    core_count,
    open_peer,
    write_models,
)
from efficientad_jax.convolution import ConvolutionMethod, is_for_accelerator
from efficientad_jax.detection.accelerated import AcceleratedDetection
from efficientad_jax.detection.inference import (
    Calibration,
    DetectorParams,
    jitted_detect,
    prepared_params,
)
from efficientad_jax.detection.map_normalization import MapQuantiles
from efficientad_jax.errors import InputError
from efficientad_jax.networks.model import Networks, create_networks
from efficientad_jax.networks.pdn import Size
from efficientad_jax.networks.preprocessing import IMAGENET_MEAN, IMAGENET_STD

OURS = "efficientad_jax"
LAX = "jax, lax.conv"
# This package runs several train steps per call, as training does.
STEPS_PER_CALL = 4


def installed_peers() -> dict[str, bool]:
    """For each peer, whether it is installed."""
    return {
        name: importlib.util.find_spec(module) is not None
        and importlib.util.find_spec("torch") is not None
        for name, module in PEERS.items()
    }


@cache
def random_weights(size: Size, image_size: tuple[int, int]) -> tuple[DetectorParams, Calibration]:
    """Random parameters and arbitrary quantiles; the times do not depend on their values."""
    networks = create_networks(size, 384, image_size, convolution="direct")
    image = jnp.zeros((1, *image_size, 3))
    params = DetectorParams(
        *(jax.jit(network.init)(jax.random.key(i), image) for i, network in enumerate(networks))
    )
    return params, Calibration(MapQuantiles(0.5, 4.5), MapQuantiles(0.4, 3.4))


def open_implementation(
    name: str, size: Size, image_size: tuple[int, int], *, dtype: str, batch: int, folder: Path
) -> Detect:
    """Opens an implementation, which is called with `batch` images.

    Args:
      name: one of `OURS`, `LAX` and `PEERS`.
      size: of the networks.
      image_size: height and width of images in pixels.
      dtype: of the computation.
      batch: images per call.
      folder: that `write_weights` wrote; only peers read it.

    Raises:
      InputError: the name is unknown, or the peer is not installed.
    """
    if name in (OURS, LAX):
        method = "auto" if name == OURS else "direct"
        return create_own_detector(
            *random_weights(size, image_size),
            size,
            image_size=image_size,
            dtype=dtype,
            method=method,
        )
    if name not in PEERS:
        raise InputError(
            f"{name!r}: no such implementation, expected one of {', '.join((OURS, LAX, *PEERS))}"
        )
    if not installed_peers()[name]:
        raise InputError(f"{name}: not installed, pip install -e '.[bench]'")
    return open_peer(name, folder, size, image_size=image_size, dtype=dtype, batch=batch)


def create_own_detector(
    params: DetectorParams,
    calibration: Calibration,
    size: Size,
    *,
    image_size: tuple[int, int],
    dtype: str,
    method: ConvolutionMethod,
) -> Detect:
    """This package, with its own convolutions ('auto') or those of XLA ('direct')."""
    networks = create_networks(size, 384, image_size, dtype=dtype, convolution=method)
    if method == "auto" and is_for_accelerator(method):
        accelerated = AcceleratedDetection(networks, params)
        return lambda images: np.asarray(accelerated(calibration, images).combined)
    ready = prepared_params(networks, jax.device_put(params), image_size)

    def detect(images: np.ndarray) -> np.ndarray:
        return np.asarray(jitted_detect(networks, ready, calibration, images).combined)

    return detect


def write_weights(
    folder: Path, names: list[str], size: Size, *, image_size: tuple[int, int], batch: int
) -> None:
    """Writes the random weights and the models that the peers in `names` need."""
    weights = named_weights(*random_weights(size, image_size))
    np.savez(folder / WEIGHTS_FILE, **weights)  # pyright: ignore[reportArgumentType]
    write_models(folder, names, size, image_size=image_size, batch=batch)


def named_weights(params: DetectorParams, calibration: Calibration) -> dict[str, np.ndarray]:
    """The weights of a detector with an autoencoder, as `torch_networks.Weights`."""
    assert calibration.global_ is not None
    arrays = {
        f"{network}/{layer}/{name}": np.asarray(array)
        for network, variables in params._asdict().items()
        if network in Networks._fields
        for layer, layer_params in variables["params"].items()
        for name, array in layer_params.items()
    }
    quantiles = {"local": calibration.local, "global": calibration.global_}
    arrays |= {name: np.array(pair, np.float64) for name, pair in quantiles.items()}
    return arrays | {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def read_weights(file: Path) -> tuple[DetectorParams, Calibration]:
    """Reads a NumPy file that `write_weights` wrote."""
    networks: dict[str, dict] = {}
    with np.load(file) as arrays:
        for key in arrays.files:
            network, *rest = key.split("/")
            if rest:
                layers = networks.setdefault(network, {"params": {}})["params"]
                layers.setdefault(rest[0], {})[rest[1]] = arrays[key]
        local, global_ = (MapQuantiles(*arrays[name].tolist()) for name in ("local", "global"))
    params = DetectorParams(networks["teacher"], networks["student"], networks["autoencoder"])
    return params, Calibration(local, global_)


def create_train_step(name: str, size: Size, image_size: tuple[int, int]) -> Callable[[], Any]:
    """A function that makes an optimizer step of Algorithm 1 and returns its loss.

    Each step uses one image, its augmented copy and one pretraining image. It computes the
    teacher's features (none are cached), with dropout. This package makes `STEPS_PER_CALL` steps.

    Raises:
      InputError: the name is unknown or cannot train.
    """
    params, calibration = random_weights(size, image_size)
    if name in (OURS, LAX):
        return _create_own_train_step(name, size, image_size, params=params)
    if name not in ("pytorch eager", "torch.compile"):
        raise InputError(
            f"{name!r}: cannot train, expected one of {OURS}, {LAX}, pytorch eager, torch.compile"
        )
    import torch

    from efficientad_jax.benchmark.torch_networks import EfficientAD, TrainStep, create_optimizer

    weights = named_weights(params, calibration)
    losses: Any = TrainStep(EfficientAD(size, weights, image_size))
    optimizer = create_optimizer(losses)
    forward = torch.compile(losses) if name == "torch.compile" else losses
    images = [torch.from_numpy(image) for image in random_images(3, image_size)[:, None]]

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        total = forward(*images)
        total.backward()
        optimizer.step()
        return total.item()

    return step


def _create_own_train_step(
    name: str, size: Size, image_size: tuple[int, int], *, params: DetectorParams
) -> Callable[[], Any]:
    from efficientad_jax.config import LossConfig
    from efficientad_jax.optimizer import adam_with_l2
    from efficientad_jax.training.batch import TrainData
    from efficientad_jax.training.step import TrainState, train_steps

    method = "auto" if name == OURS else "direct"
    networks = create_networks(size, 384, image_size, convolution=method)
    optimizer = adam_with_l2(1e-4, 1e-5)
    # Copied, because a step donates the arrays of its state, and all start from the same weights.
    trained: Any = jax.tree.map(
        jnp.copy, {"student": params.student, "autoencoder": params.autoencoder}
    )
    images = jnp.asarray(random_images(2, image_size))
    data = TrainData(images[:1], None, images[1:])
    state = TrainState(trained, optimizer.init(trained), jnp.zeros((), jnp.int32))
    # As in training, one dispatch makes several steps; the caller divides the time by their number.
    indices = jnp.zeros((STEPS_PER_CALL, 1), jnp.int32)
    run = partial(
        train_steps,
        networks,
        LossConfig(),
        optimizer,
        teacher_params=params.teacher,
        data=data,
        indices=indices,
        pretraining_indices=indices,
        key=jax.random.key(0),
    )

    def step() -> float:
        nonlocal state
        state, losses = run(state=state)
        return float(losses.total[-1])

    return step


def random_images(count: int, image_size: tuple[int, int]) -> UInt8[np.ndarray, "n h w 3"]:
    """Noise; the times do not depend on the contents of the images."""
    return np.random.default_rng(0).integers(0, 256, (count, *image_size, 3), np.uint8)


def processor() -> str:
    """A description of the accelerator or the CPU that JAX uses."""
    if jax.default_backend() != "cpu":
        return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    name, vectors = platform.processor() or platform.machine(), ""
    lines = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    for line in lines.splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
        if line.startswith("flags"):
            vectors = next((v for v in ("avx512f", "avx2", "avx") if v in line.split()), "")
    return " ".join(part for part in (f"{core_count()} cores of {name}", vectors) if part)

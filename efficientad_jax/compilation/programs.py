"""The project's programs with abstract arguments, on devices that need not be there."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from jaxtyping import PyTree

from efficientad_jax.config import Config, DistillationConfig
from efficientad_jax.convolution import ConvolutionMethod
from efficientad_jax.detection.accelerated import cast_params, trace_detection
from efficientad_jax.detection.inference import DetectorParams
from efficientad_jax.distillation.backbones import abstract_backbone_params, feature_function
from efficientad_jax.distillation.batches import images_and_targets, images_with_targets
from efficientad_jax.distillation.device_views import PHOTOGRAPH_SIZE, batch_function
from efficientad_jax.distillation.session import learning_rate
from efficientad_jax.distillation.sharding import trace_on_devices
from efficientad_jax.distillation.step import (
    BatchFunction,
    create_distill_state,
    steps_on_device,
)
from efficientad_jax.distillation.targets import projected_features
from efficientad_jax.distillation.views import TARGET_SIZE
from efficientad_jax.errors import InputError
from efficientad_jax.networks.model import Networks, create_networks
from efficientad_jax.networks.pdn import MARGIN, STRIDE, PatchDescriptionNetwork, output_size
from efficientad_jax.optimizer import adam_with_l2
from efficientad_jax.training.batch import TrainData
from efficientad_jax.training.session import configured_optimizer
from efficientad_jax.training.step import create_train_state, train_steps

# Of the packaged teachers.
_CHANNELS = 384
# Images of the training set and photographs in the device's memory.
_TRAINING_IMAGES = 256
_PHOTOGRAPHS = 3600

DETECTION_BATCHES = (1, 16)


class Program(NamedTuple):
    """A program to compile.

    Attributes:
      name: what it does.
      trace: traces it for its devices.
      parameters: how the names of those of its arguments begin that are a detector's parameters.
      steps: of the loop of a training, of which one step is counted; 0 for detection.
      least_bytes: that a call, or a step, has to read and write at least: the parameters, and in a
        training the optimizer's state.
    """

    name: str
    trace: Callable[[], jax.stages.Traced]
    parameters: str = ""
    steps: int = 0
    least_bytes: int = 0


def programs_of(
    config: Config | DistillationConfig, devices: list[Any], platform: ConvolutionMethod
) -> list[Program]:
    """The programs of a configuration: detection and training, or the distillation."""
    if isinstance(config, DistillationConfig):
        return [_distillation(config, devices, platform)]
    detections = [
        _detection(config, devices[0], platform, batch=batch) for batch in DETECTION_BATCHES
    ]
    return [*detections, _training(config, devices[0], platform)]


def _bytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _networks(config: Config, platform: ConvolutionMethod) -> Networks:
    model = config.model
    return create_networks(
        model.size,
        _CHANNELS,
        model.input_shape,
        padding=model.padding,
        dtype=model.dtype,
        convolution=platform,
    )


def _abstract_params(networks: Networks, config: Config) -> DetectorParams:
    """The parameters of a detector of the configuration, as they are stored."""
    image = jax.ShapeDtypeStruct((1, *config.model.input_shape, 3), jnp.float32)
    teacher, student, autoencoder = (
        jax.eval_shape(network.init, jax.random.key(0), image) for network in networks
    )
    return DetectorParams(teacher, student, autoencoder if config.losses.autoencoder else None)


def _on(device: Any, tree: PyTree) -> PyTree:
    """Abstract arrays on a device."""
    sharding = SingleDeviceSharding(device)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def _abstract(shape: tuple[int, ...], dtype: Any) -> Any:
    """An array without values, which stands for one in the arguments of a program."""
    return jax.ShapeDtypeStruct(shape, dtype)


def _detection(config: Config, device: Any, platform: ConvolutionMethod, *, batch: int) -> Program:
    networks = _networks(config, platform)
    stored = _abstract_params(networks, config)
    params = jax.eval_shape(partial(cast_params, networks), stored)
    images = _abstract((batch, *config.model.input_shape, 3), jnp.uint8)
    return Program(
        f"detection, batch {batch}",
        lambda: trace_detection(
            networks,
            params,
            _on(device, images),
            upsample_first=config.calibration.upsample_first,
        ),
        parameters="params",
        least_bytes=_bytes(params),
    )


def _training(config: Config, device: Any, platform: ConvolutionMethod) -> Program:
    networks, train = _networks(config, platform), config.train
    optimizer = configured_optimizer(train)
    size = config.model.input_shape
    height, width = output_size(*size, padding=config.model.padding)
    key = jax.eval_shape(lambda: jax.random.key(0))
    new_state = partial(create_train_state, networks=networks, optimizer=optimizer, input_size=size)
    state = jax.eval_shape(new_state, key)
    teacher = _abstract_params(networks, config).teacher
    steps = (train.steps_per_dispatch, train.batch_size)
    photographs = _abstract((steps[0] * steps[1], *size, 3), jnp.uint8)
    features = (_TRAINING_IMAGES, height, width, _CHANNELS)
    data = TrainData(
        _abstract((_TRAINING_IMAGES, *size, 3), jnp.uint8),
        _abstract(features, jnp.float16) if train.feature_cache_gb and not train.shift else None,
        photographs if config.losses.penalty else None,
    )
    indices = _abstract(steps, jnp.int32)
    on_device = partial(_on, device)
    return Program(
        f"training, {train.batch_size} images a step",
        lambda: train_steps.trace(
            networks,
            config.losses,
            optimizer,
            teacher_params=on_device(teacher),
            data=on_device(data),
            state=on_device(state),
            indices=on_device(indices),
            pretraining_indices=on_device(indices),
            key=on_device(key),
            crop=config.crop_size,
            shift=train.shift,
            penalty_crop=config.penalty_crop_size,
            autoencoder_crop=config.autoencoder_crop_size,
        ),
        steps=train.steps_per_dispatch,
        least_bytes=2 * _bytes(state.opt_state) + _bytes(teacher),
    )


def _distillation(
    config: DistillationConfig, devices: list[Any], platform: ConvolutionMethod
) -> Program:
    if config.batch_size % len(devices):
        raise InputError(
            f"config.batch_size = {config.batch_size}: cannot be divided among --devices="
            f"{len(devices)}"
        )
    network = PatchDescriptionNetwork(
        config.size,
        config.channels,
        padding=config.pool_views == 0,
        dtype=config.dtype,
        convolution=platform,
    )
    optimizer = adam_with_l2(learning_rate(config), config.weight_decay)
    key = jax.eval_shape(lambda: jax.random.key(0))
    new_state = partial(create_distill_state, network=network, optimizer=optimizer)
    state = jax.eval_shape(new_state, key)
    images = config.batch_size // len(devices)
    function, params, arrays = _distillation_batch(config, images, platform)
    return Program(
        f"distillation, {len(devices)} x {images} images a step",
        lambda: trace_on_devices(
            partial(steps_on_device, network, optimizer, function),
            devices,
            (state, params, arrays),
            donated=(0,),
        ),
        steps=config.steps_per_dispatch,
        least_bytes=2 * _bytes(state.opt_state),
    )


def _distillation_batch(
    config: DistillationConfig, images: int, platform: ConvolutionMethod
) -> tuple[BatchFunction, PyTree, tuple[jax.ShapeDtypeStruct, ...]]:
    """How a step computes its images and targets, with abstract parameters and inputs."""
    count = (config.steps_per_dispatch, images)
    small = _abstract((*count, config.crop, config.crop, 3), jnp.uint8)
    if config.pool_views:
        cells = config.crop // STRIDE - 2 * MARGIN
        targets = _abstract((*count, cells, cells, config.channels), jnp.float16)
        return images_and_targets, None, (small, targets)
    features = feature_function(
        config.backbone,
        config.backbone_weights,
        config.channels,
        size=TARGET_SIZE,
        dtype=config.dtype,
        convolution=platform,
    )
    compute = partial(projected_features, features)
    sources = config.channels * (1 + config.backbone.count("+"))
    vector = _abstract((sources,), jnp.float32)
    is_reduced = sources > config.channels or config.target_reduction == "pca"
    matrix = _abstract((sources, config.channels), jnp.float32) if is_reduced else None
    params = (abstract_backbone_params(config.backbone, config.dtype), (vector, vector, matrix))
    if config.views_on_device:
        shape = (_PHOTOGRAPHS, PHOTOGRAPH_SIZE, PHOTOGRAPH_SIZE, 3)
        photographs = _abstract(shape, jnp.uint8)
        ids = _abstract(count, jnp.int32)
        return batch_function(config, compute), (photographs, params), (ids,)
    side = config.backbone_size
    large = _abstract((*count, side, side, 3), jnp.uint8)
    return partial(images_with_targets, compute), params, (small, large)

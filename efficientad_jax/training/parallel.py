"""Trainings side by side, each on a device of its own, in one program for all of them."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, PyTree

from efficientad_jax.config import LossConfig
from efficientad_jax.networks.model import Networks
from efficientad_jax.training.losses import Losses
from efficientad_jax.training.step import TrainData, TrainState, several_steps

# A `jax.Device`, which a type checker takes for a variable.
Device = Any

_AXIS = "trainings"
# Images are filled up to a multiple of so many: categories differ in their number, and a program
# is compiled for one.
_IMAGES = 128


class Resident(NamedTuple):
    """What one training keeps on its device, with a leading axis of 1: its share of `pmap`'s.

    Attributes:
      device: where it is.
      teacher_params: of its normalised teacher.
      data: its images, filled up with empty ones, which no step takes.
    """

    device: Device
    teacher_params: PyTree
    data: TrainData

    @property
    def shapes(self) -> tuple[Any, ...]:
        """What has to be the same for trainings to run in one program."""
        arrays = (self.teacher_params, self.data)
        return jax.tree.structure(arrays), *((x.shape, x.dtype) for x in jax.tree.leaves(arrays))


class Steps(NamedTuple):
    """What a training's next steps take.

    Attributes:
      state: given up to the result.
      images: which images each step takes.
      pretraining_images: which pretraining images.
      key: of the whole training.
    """

    state: TrainState
    images: Int[np.ndarray, "k b"]
    pretraining_images: Int[np.ndarray, "k b"]
    key: jax.Array


def resident_on(device: Device, teacher_params: PyTree, data: TrainData) -> Resident:
    """Puts on a device what a training keeps there."""
    filled = jax.tree.map(_filled_up, data)
    arrays = jax.tree.map(lambda x: np.asarray(x)[None], (teacher_params, filled))
    return Resident(device, *jax.device_put(arrays, device))


def train_side_by_side(
    networks: Networks,
    objective: LossConfig,
    optimizer: optax.GradientTransformation,
    residents: Sequence[Resident],
    steps: Sequence[Steps],
) -> list[tuple[TrainState, Losses]]:
    """`k` steps of each training in one dispatch, what `train_steps` would make of each alone.

    Args:
      networks: of all of them.
      objective: of all of them.
      optimizer: of all of them.
      residents: of the same shapes, each on another device of this process.
      steps: of each training, equally many.

    Returns:
      The state after the steps, on its device, and their losses `[k]`, of each training.
    """
    devices = tuple(resident.device for resident in residents)
    kept = [(resident.teacher_params, resident.data) for resident in residents]
    own = zip(steps, devices, strict=True)
    states = [_with_axis(jax.device_put(step.state, device)) for step, device in own]
    teacher_params, data = _together(devices, kept)
    ended, losses = _on(devices)(
        networks,
        objective,
        optimizer,
        teacher_params,
        data,
        _together(devices, states),
        np.stack([s.images for s in steps]),
        np.stack([s.pretraining_images for s in steps]),
        np.stack([jax.random.key_data(s.key) for s in steps]),
    )
    return [_without_axis(_share((ended, losses), device)) for device in devices]


@cache
def _on(devices: tuple[Device, ...]) -> Callable[..., tuple[TrainState, Losses]]:
    return jax.pmap(
        _steps_of_one,
        axis_name=_AXIS,
        static_broadcasted_argnums=(0, 1, 2),
        donate_argnums=(5,),
        devices=devices,
    )


def _steps_of_one(*arguments: Any) -> tuple[TrainState, Losses]:
    """`several_steps`, whose key comes as numbers: arrays of keys cannot be put together."""
    return several_steps(*arguments[:-1], key=jax.random.wrap_key_data(arguments[-1]))


def _together(devices: tuple[Device, ...], shares: Sequence[PyTree]) -> PyTree:
    """One array over all devices of the arrays that each of them has; nothing is moved."""
    sharding = NamedSharding(Mesh(np.array(devices), (_AXIS,)), PartitionSpec(_AXIS))

    def join(*arrays: jax.Array) -> jax.Array:
        shape = (len(devices), *arrays[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, list(arrays))

    return jax.tree.map(join, *shares)


def _share(tree: PyTree, device: Device) -> PyTree:
    """The part that lies on a device, with the leading axis."""

    def of(array: jax.Array) -> jax.Array:
        return next(s.data for s in array.addressable_shards if s.device == device)

    return jax.tree.map(of, tree)


@jax.jit
def _with_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[None], tree)


@jax.jit
def _without_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[0], tree)


def _filled_up(images: np.ndarray) -> np.ndarray:
    missing = -len(images) % _IMAGES
    return np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])

"""Several trainings side by side: one per device, in one compiled program."""

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
from efficientad_jax.training.step import TrainData, TrainState, scan_steps

# A `jax.Device`, which a type checker takes for a variable.
Device = Any

_AXIS = "trainings"
# The number of images is padded to a multiple of this: categories have different numbers of images,
# and a program is compiled for one number.
_IMAGES = 128


class Resident(NamedTuple):
    """The arrays that one training keeps on its device, with a leading axis of 1 for `pmap`.

    Attributes:
      device: the device.
      teacher_params: parameters of its normalized teacher.
      data: its images, padded with empty images, which no step takes.
    """

    device: Device
    teacher_params: PyTree
    data: TrainData

    @property
    def shapes(self) -> tuple[Any, ...]:
        """Structure, shapes and dtypes: trainings in one program must agree in them."""
        arrays = (self.teacher_params, self.data)
        return jax.tree.structure(arrays), *((x.shape, x.dtype) for x in jax.tree.leaves(arrays))


class StepInputs(NamedTuple):
    """The inputs of the next steps of a training.

    Attributes:
      state: the state to start from; it is donated.
      images: which images each step takes.
      pretraining_images: which pretraining images each step takes.
      key: random key of the whole training.
    """

    state: TrainState
    images: Int[np.ndarray, "k b"]
    pretraining_images: Int[np.ndarray, "k b"]
    key: jax.Array


def resident_on(device: Device, teacher_params: PyTree, data: TrainData) -> Resident:
    """Puts the arrays that a training keeps on its device there."""
    padded = jax.tree.map(_padded, data)
    arrays = jax.tree.map(lambda x: np.asarray(x)[None], (teacher_params, padded))
    return Resident(device, *jax.device_put(arrays, device))


def train_side_by_side(
    networks: Networks,
    objective: LossConfig,
    optimizer: optax.GradientTransformation,
    *,
    residents: Sequence[Resident],
    inputs: Sequence[StepInputs],
) -> list[tuple[TrainState, Losses]]:
    """Makes `k` steps of each training in one dispatch; results are those of `train_steps`.

    Args:
      networks: the modules, the same for all trainings.
      objective: which losses are on, the same for all.
      optimizer: the same for all.
      residents: the arrays of each training: equal shapes, each on another device of this process.
      inputs: the inputs of each training's steps, with equal numbers of steps.

    Returns:
      For each training its state after the steps, on its device, and their losses `[k]`.
    """
    devices = tuple(resident.device for resident in residents)
    kept = [(resident.teacher_params, resident.data) for resident in residents]
    states = [
        _with_axis(jax.device_put(x.state, device))
        for x, device in zip(inputs, devices, strict=True)
    ]
    teacher_params, data = _together(devices, kept)
    ended, losses = _on(devices)(
        networks,
        objective,
        optimizer,
        teacher_params,
        data,
        _together(devices, states),
        np.stack([x.images for x in inputs]),
        np.stack([x.pretraining_images for x in inputs]),
        np.stack([jax.random.key_data(x.key) for x in inputs]),
    )
    return [_without_axis(_share((ended, losses), device)) for device in devices]


@cache
def _on(devices: tuple[Device, ...]) -> Callable[..., tuple[TrainState, Losses]]:
    return jax.pmap(
        _scan_steps_on_device,
        axis_name=_AXIS,
        static_broadcasted_argnums=(0, 1, 2),
        donate_argnums=(5,),
        devices=devices,
    )


def _scan_steps_on_device(
    networks: Networks,
    objective: LossConfig,
    optimizer: optax.GradientTransformation,
    *arrays: Any,
) -> tuple[TrainState, Losses]:
    """`scan_steps` with positional arrays, as `pmap` donates only those.

    The key comes as numbers, because arrays of keys cannot be put together.
    """
    teacher_params, data, state, indices, pretraining_indices, key_data = arrays
    return scan_steps(
        networks,
        objective,
        optimizer,
        teacher_params=teacher_params,
        data=data,
        state=state,
        indices=indices,
        pretraining_indices=pretraining_indices,
        key=jax.random.wrap_key_data(key_data),
    )


def _together(devices: tuple[Device, ...], shares: Sequence[PyTree]) -> PyTree:
    """Joins the arrays of the devices into one array over all of them; moves no data."""
    sharding = NamedSharding(Mesh(np.array(devices), (_AXIS,)), PartitionSpec(_AXIS))

    def join(*arrays: jax.Array) -> jax.Array:
        shape = (len(devices), *arrays[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, list(arrays))

    return jax.tree.map(join, *shares)


def _share(tree: PyTree, device: Device) -> PyTree:
    """The part of the arrays that is on a device, with the leading axis."""

    def local_part(array: jax.Array) -> jax.Array:
        return next(s.data for s in array.addressable_shards if s.device == device)

    return jax.tree.map(local_part, tree)


@jax.jit
def _with_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[None], tree)


@jax.jit
def _without_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[0], tree)


def _padded(images: np.ndarray) -> np.ndarray:
    missing = -len(images) % _IMAGES
    return np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])

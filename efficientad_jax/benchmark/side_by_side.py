"""Times the train steps of several trainings: sequentially, with `pmap`, and with `vmap`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from efficientad_jax.benchmark.timing import Spread, time_interleaved
from efficientad_jax.config import LossConfig
from efficientad_jax.convolution import ConvolutionMethod
from efficientad_jax.networks.model import Networks, create_networks
from efficientad_jax.networks.pdn import Size
from efficientad_jax.training.parallel import StepInputs, resident_on, train_side_by_side
from efficientad_jax.training.step import (
    TrainData,
    TrainState,
    create_train_state,
    scan_steps,
    train_steps,
)

_CHANNELS = 384
_IMAGES = 16


def time_side_by_side(
    size: Size,
    side: int,
    trainings: int,
    *,
    objective: LossConfig,
    optimizer: optax.GradientTransformation,
    steps: int,
    rounds: int,
    convolution: ConvolutionMethod = "auto",
) -> dict[str, Spread]:
    """Times `steps` train steps of each of several trainings, in three ways.

    Args:
      size: of the networks.
      side: height and width of the images in pixels.
      trainings: number of trainings; `pmap` is timed only if there is a device for each.
      objective: the losses to minimize.
      optimizer: of all trainings.
      steps: number of steps per dispatch, with batch size 1.
      rounds: how often each way is timed.
      convolution: method of the networks' convolutions.

    Returns:
      Seconds for `trainings` times `steps` steps: 'sequential', 'pmap' if there are enough devices,
      and 'vmap' on one device.
    """
    networks = create_networks(size, _CHANNELS, (side, side), convolution=convolution)
    images = np.random.default_rng(0).integers(0, 256, (_IMAGES, side, side, 3), np.uint8)
    data = TrainData(images, None, images if objective.penalty else None)
    indices = np.arange(steps, dtype=np.int32).reshape(steps, 1) % _IMAGES
    key = jax.random.key(0)
    teacher = networks.teacher.init(key, jnp.zeros((1, side, side, 3)))
    task = _Task((networks, objective, optimizer), trainings, teacher, data, indices, key)
    # Each call of a way continues from the states of the previous call, as a training does.
    ways = {"sequential": _sequential(task)}
    if jax.local_device_count() >= trainings > 1:
        ways["pmap"] = _by_pmap(task)
    ways["vmap"] = _by_vmap(task)
    return time_interleaved(ways, rounds)


class _Task(NamedTuple):
    """The work of each way: `trainings` times the steps on the images `indices`."""

    settings: tuple[Networks, LossConfig, optax.GradientTransformation]
    trainings: int
    teacher: PyTree
    data: TrainData
    indices: np.ndarray
    key: jax.Array

    def new_state(self) -> TrainState:
        networks, _, optimizer = self.settings
        _, height, width, _ = self.data.images.shape
        return create_train_state(self.key, networks, optimizer, input_size=(height, width))


def _sequential(task: _Task) -> Callable[[], Any]:
    settings, trainings, teacher, data, indices, key = task
    on_device = jax.tree.map(jnp.asarray, data)
    states = [task.new_state() for _ in range(trainings)]

    def call() -> None:
        for i, state in enumerate(states):
            ended, losses = train_steps(
                *settings,
                teacher_params=teacher,
                data=on_device,
                state=state,
                indices=indices,
                pretraining_indices=indices,
                key=key,
            )
            jax.block_until_ready(losses)
            states[i] = ended

    return call


def _by_pmap(task: _Task) -> Callable[[], Any]:
    settings, trainings, teacher, data, indices, key = task
    residents = [resident_on(device, teacher, data) for device in jax.local_devices()[:trainings]]
    states = [task.new_state() for _ in range(trainings)]

    def call() -> None:
        inputs = [StepInputs(state, indices, indices, key) for state in states]
        ended = train_side_by_side(*settings, residents=residents, inputs=inputs)
        jax.block_until_ready([losses for _, losses in ended])
        states[:] = [state for state, _ in ended]

    return call


def _by_vmap(task: _Task) -> Callable[[], Any]:
    settings, trainings, teacher, data, indices, key = task

    def stack(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * trainings), tree)

    # As in a sweep, each training has its own teacher, images and state.
    inputs = stack(teacher), stack(data)

    def steps(teacher: PyTree, data: TrainData, state: TrainState) -> Any:
        return scan_steps(
            *settings,
            teacher_params=teacher,
            data=data,
            state=state,
            indices=jnp.asarray(indices),
            pretraining_indices=jnp.asarray(indices),
            key=key,
        )

    mapped = jax.vmap(steps)
    compiled = jax.jit(mapped, donate_argnums=(2,))
    states = [stack(task.new_state())]

    def call() -> None:
        states[0], losses = compiled(*inputs, states[0])
        jax.block_until_ready(losses)

    return call

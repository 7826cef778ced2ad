"""Train steps of several trainings: one after another, side by side by `pmap`, or by `vmap`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from efficientad_jax.benchmark.timing import Spread, time_in_turns
from efficientad_jax.config import LossConfig
from efficientad_jax.convolution import Method
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
    objective: LossConfig,
    optimizer: optax.GradientTransformation,
    steps: int,
    rounds: int,
    convolution: Method = "auto",
) -> dict[str, Spread]:
    """Times `steps` train steps of each of some trainings, in three ways.

    Args:
      size: of the networks.
      side: height and width of the images in pixels.
      trainings: how many; at most as many as this process has devices are made by `pmap`.
      objective: which losses count.
      optimizer: of all of them.
      steps: in each dispatch, of batch 1.
      rounds: how often each way is timed.
      convolution: of the networks.

    Returns:
      Seconds of `trainings` times `steps` steps by each way: 'one after another', 'pmap' where
      there are enough devices, and 'vmap' on one device.
    """
    networks = create_networks(size, _CHANNELS, (side, side), convolution=convolution)
    images = np.random.default_rng(0).integers(0, 256, (_IMAGES, side, side, 3), np.uint8)
    data = TrainData(images, None, images if objective.penalty else None)
    chosen = np.arange(steps, dtype=np.int32).reshape(steps, 1) % _IMAGES
    key = jax.random.key(0)
    teacher = networks.teacher.init(key, jnp.zeros((1, side, side, 3)))
    task = _Task((networks, objective, optimizer), trainings, teacher, data, chosen, key)
    # Each way takes its states on and on, as a training does.
    ways = {"one after another": _one_after_another(task)}
    if jax.local_device_count() >= trainings > 1:
        ways["pmap"] = _by_pmap(task)
    ways["vmap"] = _by_vmap(task)
    return time_in_turns(ways, rounds)


class _Task(NamedTuple):
    """What each way does: `trainings` times the steps that take the images `chosen`."""

    settings: tuple[Networks, LossConfig, optax.GradientTransformation]
    trainings: int
    teacher: PyTree
    data: TrainData
    chosen: np.ndarray
    key: jax.Array

    def fresh(self) -> TrainState:
        networks, _, optimizer = self.settings
        _, height, width, _ = self.data.images.shape
        return create_train_state(self.key, networks, optimizer, input_size=(height, width))


def _one_after_another(task: _Task) -> Callable[[], Any]:
    settings, trainings, teacher, data, chosen, key = task
    on_device = jax.tree.map(jnp.asarray, data)
    states = [task.fresh() for _ in range(trainings)]

    def call() -> None:
        for i, state in enumerate(states):
            ended, losses = train_steps(
                *settings,
                teacher_params=teacher,
                data=on_device,
                state=state,
                indices=chosen,
                pretraining_indices=chosen,
                key=key,
            )
            jax.block_until_ready(losses)
            states[i] = ended

    return call


def _by_pmap(task: _Task) -> Callable[[], Any]:
    settings, trainings, teacher, data, chosen, key = task
    residents = [resident_on(device, teacher, data) for device in jax.local_devices()[:trainings]]
    states = [task.fresh() for _ in range(trainings)]

    def call() -> None:
        inputs = [StepInputs(state, chosen, chosen, key) for state in states]
        ended = train_side_by_side(*settings, residents=residents, inputs=inputs)
        jax.block_until_ready([losses for _, losses in ended])
        states[:] = [state for state, _ in ended]

    return call


def _by_vmap(task: _Task) -> Callable[[], Any]:
    settings, trainings, teacher, data, chosen, key = task

    def several(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * trainings), tree)

    # As in a sweep, each training has its own teacher, images and state.
    own = several(teacher), several(data)

    def steps(teacher: PyTree, data: TrainData, state: TrainState) -> Any:
        return scan_steps(
            *settings,
            teacher_params=teacher,
            data=data,
            state=state,
            indices=jnp.asarray(chosen),
            pretraining_indices=jnp.asarray(chosen),
            key=key,
        )

    mapped = jax.vmap(steps)
    compiled = jax.jit(mapped, donate_argnums=(2,))
    held = [several(task.fresh())]

    def call() -> None:
        held[0], losses = compiled(*own, held[0])
        jax.block_until_ready(losses)

    return call

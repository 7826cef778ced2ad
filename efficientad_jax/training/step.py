"""Phase 2: student and autoencoder learn the normal images (paper, Algorithm 1).

Everything here is a pure function of a state: the loops around it are in `training.loop`
and, for many trainings at once, in `sweep`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float16, Int, PyTree, UInt8

from efficientad_jax.config import LossConfig
from efficientad_jax.networks.layers import float32_features, with_transformed_kernels
from efficientad_jax.networks.model import Networks
from efficientad_jax.networks.preprocessing import normalize_images, to_unit_range
from efficientad_jax.training.augmentation import jitter, random_grayscale
from efficientad_jax.training.losses import (
    Losses,
    mean_squared_difference,
    pretraining_penalty,
    student_teacher_loss,
)


class TrainState(NamedTuple):
    """What training carries from step to step; all randomness follows from `step`.

    Attributes:
      params: of 'student' and 'autoencoder'.
      opt_state: of the optimiser, over both.
      step: how many steps are done.
    """

    params: dict[str, PyTree]
    opt_state: PyTree
    step: Int[Array, ""]


class TrainData(NamedTuple):
    """What stays on the device during training; until it is put there, NumPy arrays.

    Attributes:
      images: training images at the network's size.
      teacher_features: the normalised teacher's features of each of them, rounded to float16, or
        None to compute them in each step.
      pretraining_images: for the penalty, None where it is off.
    """

    images: UInt8[Array | np.ndarray, "n h w 3"]
    teacher_features: Float16[Array | np.ndarray, "n oh ow c"] | None
    pretraining_images: UInt8[Array | np.ndarray, "m h w 3"] | None


class Batch(NamedTuple):
    """The images of one step; see `TrainData`."""

    images: UInt8[Array, "b h w 3"]
    teacher_features: Float16[Array, "b oh ow c"] | None
    pretraining_images: UInt8[Array, "b h w 3"] | None


def create_train_state(
    key: jax.Array,
    networks: Networks,
    optimizer: optax.GradientTransformation,
    input_size: tuple[int, int],
) -> TrainState:
    """Fresh parameters and optimiser."""
    student_key, autoencoder_key = jax.random.split(key)
    image = jnp.zeros((1, *input_size, 3))
    params = {
        "student": jax.jit(networks.student.init)(student_key, image),
        "autoencoder": jax.jit(networks.autoencoder.init)(autoencoder_key, image),
    }
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def compute_losses(
    networks: Networks,
    objective: LossConfig,
    teacher_params: PyTree,
    params: dict[str, PyTree],
    batch: Batch,
    key: jax.Array,
) -> Losses:
    """The losses of one step (Algorithm 1, lines 12-32).

    Args:
      networks: their modules.
      objective: which losses count.
      teacher_params: of the normalised teacher, see `normalize_teacher`.
      params: of 'student' and 'autoencoder'.
      batch: uint8 images of the step.
      key: decides augmentation, grayscale and dropout.
    """
    jitter_key, gray_key, dropout_key = jax.random.split(key, 3)
    half = networks.teacher.out_channels
    count = batch.images.shape[0]
    images = to_unit_range(batch.images)

    for_student = [images]
    if objective.penalty:
        if batch.pretraining_images is None:
            raise ValueError("the pretraining penalty is on, but there are no pretraining images")
        pretraining = to_unit_range(batch.pretraining_images)
        pretraining = random_grayscale(gray_key, pretraining, objective.grayscale_probability)
        for_student.append(pretraining)
    imitating = len(for_student) * count  # rows of which the student's first half is needed
    augmented = [jitter(jitter_key, images)] if objective.autoencoder else []

    # All layers but the last see every image at once; the last computes the half that is used.
    student = partial(float32_features, networks.student, params["student"])
    trunk = student(normalize_images(jnp.concatenate(for_student + augmented)), method="trunk")
    first = student(trunk[:imitating], slice(0, half), method="last_layer")

    teacher = partial(float32_features, networks.teacher, teacher_params)
    if batch.teacher_features is None:
        described = teacher(normalize_images(jnp.concatenate([images, *augmented])))
        target = described[:count]
    else:
        described = teacher(normalize_images(augmented[0])) if augmented else None
        target = batch.teacher_features.astype(jnp.float32)

    zero = jnp.zeros(())
    hard = student_teacher_loss(target, first[:count], objective.p_hard)
    penalty = pretraining_penalty(first[count:]) if objective.penalty else zero
    if not augmented or described is None:
        return Losses(hard, penalty, zero, zero)

    second = student(trunk[imitating:], slice(half, None), method="last_layer")
    predicted = float32_features(
        networks.autoencoder,
        params["autoencoder"],
        normalize_images(augmented[0]),
        deterministic=False,
        rngs={"dropout": dropout_key},
    )
    return Losses(
        hard,
        penalty,
        mean_squared_difference(described[-count:], predicted),
        mean_squared_difference(predicted, second),
    )


def train_step(
    networks: Networks,
    objective: LossConfig,
    optimizer: optax.GradientTransformation,
    teacher_params: PyTree,
    state: TrainState,
    batch: Batch,
    key: jax.Array,
) -> tuple[TrainState, Losses]:
    """One step of Algorithm 1: losses, gradients, optimiser (lines 12-34)."""

    def objective_of(params: dict[str, PyTree]) -> tuple[Float[Array, ""], Losses]:
        losses = compute_losses(networks, objective, teacher_params, params, batch, key)
        return losses.total, losses

    gradients, losses = jax.grad(objective_of, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    return TrainState(params, opt_state, state.step + 1), losses


def several_steps(
    networks: Networks,
    objective: LossConfig,
    optimizer: optax.GradientTransformation,
    teacher_params: PyTree,
    data: TrainData,
    state: TrainState,
    indices: Int[Array, "k b"],
    pretraining_indices: Int[Array, "k b"],
    key: jax.Array,
) -> tuple[TrainState, Losses]:
    """`k` steps, which `train_steps` makes in one dispatch.

    Args:
      networks: their modules.
      objective: which losses count.
      optimizer: as made the state.
      teacher_params: of the normalised teacher.
      data: resident images.
      state: given up to the result.
      indices: which images each step takes.
      pretraining_indices: which pretraining images; not read where the penalty is off.
      key: of the whole training; each step folds its number in.

    Returns:
      The state after `k` steps, and the losses of each.
    """
    _, height, width, _ = data.images.shape
    teacher_params = with_transformed_kernels(networks.teacher, teacher_params, (height, width))

    def step(state: TrainState, chosen: tuple[Array, Array]) -> tuple[TrainState, Losses]:
        normal, pretraining = chosen
        features, others = data.teacher_features, data.pretraining_images
        batch = Batch(
            data.images[normal],
            None if features is None else features[normal],
            others[pretraining] if objective.penalty and others is not None else None,
        )
        step_key = jax.random.fold_in(key, state.step)
        return train_step(networks, objective, optimizer, teacher_params, state, batch, step_key)

    return jax.lax.scan(step, state, (indices, pretraining_indices))


train_steps = jax.jit(
    several_steps,
    static_argnames=("networks", "objective", "optimizer"),
    donate_argnames=("state",),
)

"""Phase 2: student and autoencoder learn the normal images (paper, Algorithm 1).

Everything here is a pure function of a state. The loop is in `training.loop`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Float16, Int, PyTree

from efficientad_jax.config import LossConfig
from efficientad_jax.convolution import chosen_method
from efficientad_jax.networks.ignored import Ignored, fill_ignored
from efficientad_jax.networks.layers import float32_features, with_transformed_kernels
from efficientad_jax.networks.model import Networks
from efficientad_jax.networks.pdn import PatchDescriptionNetwork, output_size
from efficientad_jax.networks.preprocessing import normalize_images, to_unit_range
from efficientad_jax.training.augmentation import jitter, random_grayscale
from efficientad_jax.training.batch import Batch, TrainData, random_parts, take_batch
from efficientad_jax.training.flat import FlatLayout, flat_layout
from efficientad_jax.training.losses import (
    Losses,
    mean_squared_difference,
    pretraining_penalty,
    student_teacher_loss,
)


class TrainState(NamedTuple):
    """The state that a training step takes and returns; `step` determines all randomness.

    Attributes:
      params: parameters of 'student' and 'autoencoder'.
      opt_state: state of the optimizer, for both.
      step: number of steps done.
    """

    params: dict[str, PyTree]
    opt_state: PyTree
    step: Int[Array, ""]


def create_train_state(
    key: jax.Array,
    networks: Networks,
    optimizer: optax.GradientTransformation,
    *,
    input_size: tuple[int, int],
) -> TrainState:
    """Creates random parameters and a new optimizer state.

    Args:
      key: a random key.
      networks: the modules.
      optimizer: of the training.
      input_size: height and width of the images in pixels.
    """
    student_key, autoencoder_key = jax.random.split(key)
    image = jnp.zeros((1, *input_size, 3))
    params = {
        "student": jax.jit(networks.student.init)(student_key, image),
        "autoencoder": jax.jit(networks.autoencoder.init)(autoencoder_key, image),
    }
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


class _StudentFeatures(NamedTuple):
    """The student's features of the images that a step shows it.

    Attributes:
      normal: first half of the channels, for the training images.
      pretraining: first half, for the pretraining images; empty without the penalty.
      augmented: second half, for the augmented training images; None without an autoencoder.
    """

    normal: Float[Array, "b oh ow c"]
    pretraining: Float[Array, "_b ph pw c"]
    augmented: Float[Array, "b ah aw c"] | None


def compute_losses(
    networks: Networks,
    objective: LossConfig,
    teacher_params: PyTree,
    *,
    params: dict[str, PyTree],
    batch: Batch,
    key: jax.Array,
    autoencoder_crop: tuple[int, int] | None = None,
) -> Losses:
    """Computes the losses of one step (Algorithm 1, lines 12-32).

    Args:
      networks: the modules.
      objective: which losses are on.
      teacher_params: parameters of the normalized teacher, see `normalize_teacher`.
      params: parameters of 'student' and 'autoencoder'.
      batch: the uint8 images of the step.
      key: random key of augmentation, grayscale and dropout.
      autoencoder_crop: height and width in pixels of the part of an image, at a random place, in
        which the autoencoder's output is compared; None compares all of it. Teacher and student
        then only see that part, and have to be without padding.

    Raises:
      ValueError: the penalty is on, but the batch has no pretraining images.
    """
    jitter_key, gray_key, dropout_key = jax.random.split(key, 3)
    images = to_unit_range(batch.images)
    pretraining = _pretraining_images(batch, objective, gray_key)
    augmented, ignored = None, None
    if objective.autoencoder:
        augmented, ignored = _augmented_images(batch, images, jitter_key)
    parts = random_parts(augmented, autoencoder_crop, jax.random.fold_in(key, 1))
    compared = augmented if parts is None or augmented is None else parts.of_images(augmented)
    student = _student_features(
        networks.student, params["student"], images, pretraining=pretraining, augmented=compared
    )
    with jax.named_scope("teacher"):
        target, augmented_target = _teacher_features(
            networks.teacher,
            teacher_params,
            images,
            augmented=compared,
            cached=batch.teacher_features,
        )
    zero, mined = jnp.zeros(()), _values(batch.ignored)
    hard = student_teacher_loss(target, student.normal, objective.p_hard, ignored=mined)
    penalty = pretraining_penalty(student.pretraining) if objective.penalty else zero
    if augmented is None or augmented_target is None or student.augmented is None:
        return Losses(hard, penalty, zero, zero)
    predicted = _predicted(networks, params, augmented, dropout_key)
    left_out = _values(ignored)
    if parts is not None:
        predicted, left_out = parts.of_outputs(predicted), parts.of_ignored(left_out)
    return Losses(
        hard,
        penalty,
        mean_squared_difference(augmented_target, predicted, left_out),
        mean_squared_difference(predicted, student.augmented, left_out),
    )


def _augmented_images(
    batch: Batch, images: Float[Array, "b h w 3"], key: jax.Array
) -> tuple[Float[Array, "b fh fw 3"], Ignored | None]:
    """The augmented whole images (Algorithm 1, lines 24-27), and what is ignored of them."""
    whole = batch.whole_images
    augmented = jitter(key, images if whole is None else to_unit_range(whole))
    ignored = batch.ignored if whole is None else batch.whole_ignored
    return fill_ignored(augmented, ignored), ignored  # also where brightness has changed


def _predicted(
    networks: Networks, params: dict[str, PyTree], images: Float[Array, "b h w 3"], key: jax.Array
) -> Float[Array, "b oh ow c"]:
    """The autoencoder's output with dropout."""
    return float32_features(
        networks.autoencoder,
        params["autoencoder"],
        normalize_images(images),
        deterministic=False,
        rngs={"dropout": key},
    )


def _values(ignored: Ignored | None) -> Bool[Array, "_b oh ow"] | None:
    """The outputs that are ignored."""
    return None if ignored is None else jnp.asarray(ignored.values)


def _pretraining_images(
    batch: Batch, objective: LossConfig, key: jax.Array
) -> Float[Array, "b ph pw 3"] | None:
    """The pretraining images, some of them gray (Algorithm 1, lines 18-19); None if not needed."""
    if not objective.penalty:
        return None
    if batch.pretraining_images is None:
        raise ValueError("the pretraining penalty is on, but there are no pretraining images")
    images = to_unit_range(batch.pretraining_images)
    return random_grayscale(key, images, objective.grayscale_probability)


def _student_features(
    network: PatchDescriptionNetwork,
    params: PyTree,
    images: Float[Array, "b h w 3"],
    *,
    pretraining: Float[Array, "b ph pw 3"] | None,
    augmented: Float[Array, "b ah aw 3"] | None,
) -> _StudentFeatures:
    """Applies the student to all images of one size in one pass, to those of another in another.

    All layers but the last see every image at once; the last computes only the half of the channels
    that is used.
    """
    student, half = partial(float32_features, network, params), network.out_channels // 2
    if augmented is not None and augmented.shape != images.shape:
        of_crops = _student_features(
            network, params, images, pretraining=pretraining, augmented=None
        )
        return of_crops._replace(augmented=student(normalize_images(augmented), slice(half, None)))
    if pretraining is not None and pretraining.shape != images.shape:
        of_images = _student_features(
            network, params, images, pretraining=None, augmented=augmented
        )
        return of_images._replace(
            pretraining=student(normalize_images(pretraining), slice(0, half))
        )
    given = [x for x in (images, pretraining, augmented) if x is not None]
    with jax.named_scope("student"):
        trunk = student(normalize_images(jnp.concatenate(given)), method="trunk")
    count = len(images)
    end = count if pretraining is None else count + len(pretraining)
    first = student(trunk[:end], slice(0, half), method="last_layer")
    second = None
    if augmented is not None:
        second = student(trunk[end:], slice(half, None), method="last_layer")
    return _StudentFeatures(first[:count], first[count:], second)


def _teacher_features(
    network: PatchDescriptionNetwork,
    params: PyTree,
    images: Float[Array, "b h w 3"],
    *,
    augmented: Float[Array, "b ah aw 3"] | None,
    cached: Float16[Array, "b oh ow c"] | None,
) -> tuple[Float[Array, "b oh ow c"], Float[Array, "b aoh aow c"] | None]:
    """The teacher's features of the images, cached or not, and of the augmented images, if any."""
    teacher = partial(float32_features, network, params)
    if cached is not None:
        features = None if augmented is None else teacher(normalize_images(augmented))
        return cached.astype(jnp.float32), features
    if augmented is None:
        return teacher(normalize_images(images)), None
    if augmented.shape != images.shape:
        return tuple(teacher(normalize_images(x)) for x in (images, augmented))  # pyright: ignore
    features = teacher(normalize_images(jnp.concatenate([images, augmented])))
    return features[: len(images)], features[len(images) :]


def train_step(
    networks: Networks,
    objective: LossConfig,
    optimizer: optax.GradientTransformation,
    *,
    teacher_params: PyTree,
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    flat: FlatLayout | None = None,
    params: PyTree | None = None,
    autoencoder_crop: tuple[int, int] | None = None,
) -> tuple[TrainState, Losses]:
    """One step of Algorithm 1: losses, gradients, optimizer (lines 12-34).

    Args:
      networks: the modules.
      objective: which losses are on.
      optimizer: the one that made the state.
      teacher_params: parameters of the normalized teacher.
      state: before the step.
      batch: the images of the step.
      key: random key of the step.
      flat: of the vectors in `state`; None for a state of trees.
      params: with `flat`, the parameters as a tree, in the dtype of the computation.
      autoencoder_crop: see `compute_losses`.
    """

    def total_loss(params: dict[str, PyTree]) -> tuple[Float[Array, ""], Losses]:
        losses = compute_losses(
            networks,
            objective,
            teacher_params,
            params=params,
            batch=batch,
            key=key,
            autoencoder_crop=autoencoder_crop,
        )
        return losses.total, losses

    gradients, losses = jax.grad(total_loss, has_aux=True)(state.params if flat is None else params)
    if flat is not None:
        gradients = flat.flatten(gradients)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    new_params: Any = optax.apply_updates(state.params, updates)
    return TrainState(new_params, opt_state, state.step + 1), losses


# The state, and on a GPU its parameters as a tree in the dtype of the computation.
_Carried = tuple[TrainState, PyTree | None]


def scan_steps(
    networks: Networks,
    objective: LossConfig,
    optimizer: optax.GradientTransformation,
    *,
    teacher_params: PyTree,
    data: TrainData,
    state: TrainState,
    indices: Int[Array, "k b"],
    pretraining_indices: Int[Array, "k b"],
    key: jax.Array,
    crop: tuple[int, int] | None = None,
    shift: bool = False,
    penalty_crop: tuple[int, int] | None = None,
    autoencoder_crop: tuple[int, int] | None = None,
) -> tuple[TrainState, Losses]:
    """Makes `k` steps; returns the state and the losses of each.

    Args:
      networks: the modules.
      objective: which losses are on.
      optimizer: the one that made the state.
      teacher_params: of the normalized teacher.
      data: the images, on the device.
      state: to start from; `train_steps` donates it.
      indices: which images each step takes.
      pretraining_indices: which pretraining images each step takes, if the penalty is on.
      key: random key of the whole training; each step folds its number in.
      crop: see `take_batch`.
      shift: likewise.
      penalty_crop: likewise.
      autoencoder_crop: see `compute_losses`.
    """
    flat, state, teacher_params = _prepared(
        networks, state, teacher_params, sides=crop or data.images.shape[1:3]
    )
    whole = objective.autoencoder and _is_part(networks, crop)
    take = partial(take_batch, crop=crop, shift=shift, penalty_crop=penalty_crop, whole=whole)
    unflatten = partial(_unflattened, flat, networks.student)

    def step(carried: _Carried, rows: tuple[Array, Array]) -> tuple[_Carried, Losses]:
        state, params = carried
        step_key = jax.random.fold_in(key, state.step)
        state, losses = train_step(
            networks,
            objective,
            optimizer,
            teacher_params=teacher_params,
            state=state,
            batch=take(data, *rows, key=step_key),
            key=step_key,
            flat=flat,
            params=params,
            autoencoder_crop=autoencoder_crop,
        )
        return (state, unflatten(state)), losses

    start, rows = (state, unflatten(state)), (indices, pretraining_indices)
    (state, _), losses = jax.lax.scan(step, start, rows)
    return state if flat is None else flat.map(flat.unflatten, state), losses


def _prepared(
    networks: Networks, state: TrainState, teacher_params: PyTree, *, sides: Sequence[int]
) -> tuple[FlatLayout | None, TrainState, PyTree]:
    """State and teacher as all steps use them, on images with these sides.

    On a GPU the state consists of vectors, with their layout, and the teacher is in the
    computation's dtype. Elsewhere the state is as it is: on a TPU slices cost more than they save.
    """
    student = networks.student
    size = sides[0], sides[1]
    teacher_params = with_transformed_kernels(networks.teacher, teacher_params, size)
    if chosen_method(student.convolution) != "gpu":
        return None, state, teacher_params
    flat = flat_layout(state.params)
    cast = jax.tree.map(lambda leaf: leaf.astype(student.dtype), teacher_params)
    return flat, flat.map(flat.flatten, state), cast


def _unflattened(
    flat: FlatLayout | None, student: PatchDescriptionNetwork, state: TrainState
) -> PyTree | None:
    return None if flat is None else flat.unflatten(state.params, student.dtype)


def _is_part(networks: Networks, crop: tuple[int, int] | None) -> bool:
    """Whether a crop is smaller than the autoencoder's image, as a tile of an image is not."""
    whole = networks.autoencoder.output_size
    return crop is not None and output_size(*crop, networks.teacher.padding) != whole


train_steps = jax.jit(
    scan_steps,
    static_argnames=(
        *("networks", "objective", "optimizer"),
        *("crop", "shift", "penalty_crop", "autoencoder_crop"),
    ),
    donate_argnames=("state",),
)

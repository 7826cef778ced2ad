"""The images of one step: whole, or parts at random places."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float16, Int, UInt8

from efficientad_jax.networks.ignored import Ignored
from efficientad_jax.networks.pdn import STRIDE, output_size


class TrainData(NamedTuple):
    """The images of a training: NumPy arrays first, later arrays that stay on the device.

    Attributes:
      images: training images at the network's size, RGB in 0..255.
      teacher_features: the normalized teacher's features of each image, rounded to float16, or
        None to compute them in each step.
      pretraining_images: images for the penalty, None if it is off.
      ignored: what is ignored of each training image, None for nothing.
      sizes: height and width that count of each training image, where they differ: steps take parts
        of only these. None for all of them.
    """

    images: UInt8[Array | np.ndarray, "n h w 3"]
    teacher_features: Float16[Array | np.ndarray, "n oh ow c"] | None
    pretraining_images: UInt8[Array | np.ndarray, "m h w 3"] | None
    ignored: Ignored | None = None
    sizes: Int[Array | np.ndarray, "n 2"] | None = None


class Batch(NamedTuple):
    """The images of one step, or crops of them; see `TrainData`.

    Attributes:
      images: the training images or their crops.
      teacher_features: of them, or None.
      pretraining_images: as large as they are, or None.
      whole_images: the training images for the autoencoder if `images` are crops, otherwise None.
      ignored: what is ignored of `images`, None for nothing.
      whole_ignored: what is ignored of `whole_images`.
    """

    images: UInt8[Array, "b h w 3"]
    teacher_features: Float16[Array, "b oh ow c"] | None
    pretraining_images: UInt8[Array, "b h w 3"] | None
    whole_images: UInt8[Array, "b fh fw 3"] | None = None
    ignored: Ignored | None = None
    whole_ignored: Ignored | None = None


def take_batch(
    data: TrainData,
    images: Int[Array, " b"],
    photographs: Int[Array, " b"],
    *,
    crop: tuple[int, int] | None,
    key: jax.Array,
    whole: bool,
) -> Batch:
    """The batch of these training images and photographs.

    Args:
      data: all images.
      images: which training images.
      photographs: which pretraining images, if there are any.
      crop: height and width in pixels of the part to take of each, at a random place; None takes
        whole images.
      key: random key of the step.
      whole: whether a batch of crops has the whole training images as well.
    """
    if crop:
        # Another key than those of the losses, which are split off this one.
        crop_key = jax.random.fold_in(key, 0)
        batch = random_crops(data, images, photographs, crop=crop, key=crop_key)
        if not whole:
            return batch
        ignored = None if data.ignored is None else data.ignored.of(images)
        return batch._replace(whole_images=data.images[images], whole_ignored=ignored)
    features, pretraining, ignored = data.teacher_features, data.pretraining_images, data.ignored
    return Batch(
        data.images[images],
        None if features is None else features[images],
        None if pretraining is None else pretraining[photographs],
        ignored=None if ignored is None else ignored.of(images),
    )


def random_crops(
    data: TrainData,
    images: Int[Array, " b"],
    photographs: Int[Array, " b"],
    *,
    crop: tuple[int, int],
    key: jax.Array,
) -> Batch:
    """The batch of parts of these training images and photographs, at random places.

    The places are multiples of the stride of an unpadded PDN. The teacher's features of a part are
    then exactly those of the whole image there.
    """
    (height, width), batch = data.images.shape[1:3], len(images)
    keys = jax.random.split(key, 4)

    def positions(key: jax.Array, side: int | Array, part: int) -> Int[Array, " b"]:
        return jax.random.randint(key, (batch,), 0, (side - part) // STRIDE + 1)

    def cut(
        whole: Array | np.ndarray,
        indices: Array,
        places: tuple[Array, Array],
        size: tuple[int, int],
    ) -> Array:
        def part(index: Array, top: Array, left: Array) -> Array:
            start = (index, top, left, 0)
            return jax.lax.dynamic_slice(whole, start, (1, *size, whole.shape[-1]))[0]

        return jax.vmap(part)(indices, *places)

    if data.sizes is not None:
        height, width = data.sizes[images, 0], data.sizes[images, 1]
    rows, columns = positions(keys[0], height, crop[0]), positions(keys[1], width, crop[1])
    pixels = (STRIDE * rows, STRIDE * columns)
    features, pretraining, ignored = data.teacher_features, data.pretraining_images, data.ignored
    others = data.images if pretraining is None else pretraining
    elsewhere = (
        STRIDE * positions(keys[2], others.shape[1], crop[0]),
        STRIDE * positions(keys[3], others.shape[2], crop[1]),
    )
    outputs = (rows, columns), output_size(*crop)
    if ignored is not None:
        which = images if len(ignored.values) > 1 else jnp.zeros_like(images)
        ignored = Ignored(
            cut(jnp.asarray(ignored.pixels)[..., None], which, pixels, crop)[..., 0],
            cut(jnp.asarray(ignored.values)[..., None], which, *outputs)[..., 0],
        )
    return Batch(
        cut(data.images, images, pixels, crop),
        None if features is None else cut(features, images, *outputs),
        None if pretraining is None else cut(pretraining, photographs, elsewhere, crop),
        ignored=ignored,
    )

"""The images of one step: whole, or parts at random places."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float16, Int, UInt8

from efficientad_jax.networks.ignored import Ignored, ignored_outputs_of_parts
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
      pretraining_images: as large as they are or smaller, or None.
      whole_images: the training images for the autoencoder if `images` are crops, otherwise None.
      ignored: what is ignored of `images`, None for nothing.
      whole_ignored: what is ignored of `whole_images`.
    """

    images: UInt8[Array, "b h w 3"]
    teacher_features: Float16[Array, "b oh ow c"] | None
    pretraining_images: UInt8[Array, "b ph pw 3"] | None
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
    shift: bool = False,
    penalty_crop: tuple[int, int] | None = None,
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
      shift: see `random_crops`.
      penalty_crop: as `crop`, of the photographs; None takes as much of them as of the images.
    """
    # Another key than those of the losses, which are split off this one.
    crop_key = jax.random.fold_in(key, 0)
    if crop:
        batch = random_crops(data, images, photographs, crop=crop, key=crop_key, shift=shift)
        if whole:
            ignored = None if data.ignored is None else data.ignored.of(images)
            batch = batch._replace(whole_images=data.images[images], whole_ignored=ignored)
    else:
        features, ignored = data.teacher_features, data.ignored
        batch = Batch(
            data.images[images],
            None if features is None else features[images],
            None if data.pretraining_images is None else data.pretraining_images[photographs],
            ignored=None if ignored is None else ignored.of(images),
        )
    if penalty_crop and data.pretraining_images is not None:
        parts = _crop_photographs(data.pretraining_images, photographs, penalty_crop, key=crop_key)
        batch = batch._replace(pretraining_images=parts)
    return batch


def random_crops(
    data: TrainData,
    images: Int[Array, " b"],
    photographs: Int[Array, " b"],
    *,
    crop: tuple[int, int],
    key: jax.Array,
    shift: bool = False,
) -> Batch:
    """The batch of parts of these training images and photographs, at random places.

    The places are multiples of the stride of an unpadded PDN. The teacher's features of a part are
    then exactly those of the whole image there.

    Args:
      data: all images.
      images: which training images.
      photographs: which pretraining images, if there are any.
      crop: height and width of the parts in pixels.
      key: random key of the step.
      shift: whether parts begin at any pixel; `data` then has no teacher features.
    """
    height, width = data.images.shape[1:3]
    keys = jax.random.split(key, 4)
    if data.sizes is not None:
        height, width = data.sizes[images, 0], data.sizes[images, 1]
    unit = 1 if shift else STRIDE
    rows = _random_places(keys[0], height, crop[0], count=len(images), unit=unit)
    columns = _random_places(keys[1], width, crop[1], count=len(images), unit=unit)
    pixels = (unit * rows, unit * columns)
    features, pretraining, ignored = data.teacher_features, data.pretraining_images, data.ignored
    outputs = (rows, columns), output_size(*crop)
    if ignored is not None:
        which = images if len(ignored.values) > 1 else jnp.zeros_like(images)
        hidden = _cut(jnp.asarray(ignored.pixels)[..., None], which, pixels, crop)[..., 0]
        values = (
            ignored_outputs_of_parts(hidden)
            if shift
            else _cut(jnp.asarray(ignored.values)[..., None], which, *outputs)[..., 0]
        )
        ignored = Ignored(hidden, values)
    return Batch(
        _cut(data.images, images, pixels, crop),
        None if features is None else _cut(features, images, *outputs),
        None if pretraining is None else _crop_photographs(pretraining, photographs, crop, key=key),
        ignored=ignored,
    )


def _crop_photographs(
    pretraining: UInt8[Array | np.ndarray, "m h w 3"],
    photographs: Int[Array, " b"],
    crop: tuple[int, int],
    *,
    key: jax.Array,
) -> UInt8[Array, "b ch cw 3"]:
    """Parts of these photographs; `random_crops` with this key takes parts elsewhere."""
    keys, count = jax.random.split(key, 4), len(photographs)
    height, width = pretraining.shape[1:3]
    places = (
        STRIDE * _random_places(keys[2], height, crop[0], count=count),
        STRIDE * _random_places(keys[3], width, crop[1], count=count),
    )
    return _cut(pretraining, photographs, places, crop)


class Parts(NamedTuple):
    """A part of each image of a batch, whose place in its outputs is known.

    Attributes:
      rows: where the parts begin, in outputs.
      columns: likewise.
      size: height and width in pixels.
    """

    rows: Int[Array, " b"]
    columns: Int[Array, " b"]
    size: tuple[int, int]

    def of_images(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b ch cw 3"]:
        """The parts of the images."""
        places = STRIDE * self.rows, STRIDE * self.columns
        return _cut(images, jnp.arange(len(images)), places, self.size)

    def of_outputs(self, outputs: Float[Array, "b oh ow c"]) -> Float[Array, "b ph pw c"]:
        """The parts of what an unpadded PDN computes from the whole images."""
        places = self.rows, self.columns
        return _cut(outputs, jnp.arange(len(outputs)), places, output_size(*self.size))

    def of_ignored(self, values: Bool[Array, "_b oh ow"] | None) -> Bool[Array, "b ph pw"] | None:
        """The parts of what is ignored, of one map for all images or one for each."""
        if values is None:
            return None
        indices = jnp.arange(len(self.rows)) if len(values) > 1 else jnp.zeros_like(self.rows)
        places = self.rows, self.columns
        return _cut(values[..., None], indices, places, output_size(*self.size))[..., 0]


def random_parts(
    images: Float[Array, "b h w 3"] | None, crop: tuple[int, int] | None, key: jax.Array
) -> Parts | None:
    """Parts at random places, None for whole images."""
    if images is None or crop is None:
        return None
    keys, (count, height, width, _) = jax.random.split(key), images.shape
    return Parts(
        _random_places(keys[0], height, crop[0], count=count),
        _random_places(keys[1], width, crop[1], count=count),
        crop,
    )


def _random_places(
    key: jax.Array, side: int | Int[Array, " b"], part: int, *, count: int, unit: int = STRIDE
) -> Int[Array, " b"]:
    """Where parts of `part` pixels begin in sides of `side` pixels, in units of so many pixels."""
    return jax.random.randint(key, (count,), 0, (side - part) // unit + 1)


def _cut(
    whole: Array | np.ndarray,
    indices: Int[Array, " b"],
    places: tuple[Int[Array, " b"], Int[Array, " b"]],
    size: tuple[int, int],
) -> Array:
    """Cuts parts of one size out of images or maps: `[b, *size, c]`."""

    def part(index: Array, top: Array, left: Array) -> Array:
        start = (index, top, left, 0)
        return jax.lax.dynamic_slice(whole, start, (1, *size, whole.shape[-1]))[0]

    return jax.vmap(part)(indices, *places)

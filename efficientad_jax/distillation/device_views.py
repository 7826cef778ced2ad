"""Views made on the accelerator, from photographs that its memory holds.

A processor core makes some hundred views per second, and a GPU can learn from thousands. Where the
photographs fit into the accelerator's memory, it makes the views itself, and nothing has to be
transferred during the training. The views are drawn as in `views.random_view`, from other random
numbers; only the seed and its id determine a view.
"""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8
from PIL import Image

from efficientad_jax.config import DistillationConfig
from efficientad_jax.distillation.backbones import FeatureFunction
from efficientad_jax.distillation.batches import Batch, view_recipe
from efficientad_jax.distillation.photographs import Photographs, read_photograph
from efficientad_jax.distillation.sharding import replicate
from efficientad_jax.distillation.step import BatchFunction
from efficientad_jax.distillation.views import VIEW_SIZE, ViewRecipe

# Height and width of a photograph in the accelerator's memory, in pixels. A view of a quarter of
# its area then has 144 pixels per side.
PHOTOGRAPH_SIZE = 288

# Weights of red, green and blue in a gray level (ITU-R 601), as in Pillow's conversion.
_LUMINANCE = (0.299, 0.587, 0.114)


class _Choices(NamedTuple):
    """The random choices of a crop; positions and lengths are fractions of the photograph."""

    top: Float[Array, ""]
    left: Float[Array, ""]
    height: Float[Array, ""]
    width: Float[Array, ""]
    flip_rows: Bool[Array, ""]
    flip_columns: Bool[Array, ""]
    transpose: Bool[Array, ""]
    gray: Bool[Array, ""]
    contrast: Float[Array, ""]
    darkest: Float[Array, ""]


def load_photographs(
    photographs: Photographs, order: Int[np.ndarray, " n"]
) -> UInt8[Array, "d n 288 288 3"]:
    """Reads photographs, resizes them to squares and copies them to each device of this process.

    Args:
      photographs: all photographs.
      order: indices of the photographs to read, in this order.

    Raises:
      InputError: a photograph cannot be read.
    """
    size = (PHOTOGRAPH_SIZE, PHOTOGRAPH_SIZE)

    def read(index: np.int64) -> UInt8[np.ndarray, "288 288 3"]:
        image = Image.fromarray(read_photograph(photographs, int(index)))
        return np.asarray(image.resize(size, Image.Resampling.BILINEAR))

    with ThreadPoolExecutor() as pool:
        return replicate(np.stack(list(pool.map(read, order))))


def view_ids(config: DistillationConfig, *, first_step: int, rows: slice) -> Generator[Batch]:
    """The ids of the views of each step: all that the host contributes.

    Args:
      config: of the distillation.
      first_step: the step of the first batch.
      rows: rows of this process in every batch.
    """
    for step in range(first_step, config.steps):
        ids = np.arange(step * config.batch_size, (step + 1) * config.batch_size, dtype=np.int32)
        yield Batch((ids[rows],), 0.0)


def batch_function(config: DistillationConfig, compute: FeatureFunction) -> BatchFunction:
    """How a step computes images and targets from the ids of views.

    The parameters of the function that it returns are the photographs and those of `compute`, which
    computes the targets of views.
    """
    return partial(_images_and_targets, compute=compute, recipe=view_recipe(config, 4))


def _images_and_targets(
    params: PyTree,
    arrays: tuple[Int[Array, " n"]],
    *,
    compute: FeatureFunction,
    recipe: ViewRecipe,
) -> tuple[Array, Array]:
    photographs, target_params = params
    large, small = make_views(photographs, arrays[0], recipe)
    return small, compute(target_params, large)


def make_views(
    photographs: UInt8[Array, "p h w 3"], ids: Int[Array, " n"], recipe: ViewRecipe
) -> tuple[UInt8[Array, "n s s 3"], UInt8[Array, "n 256 256 3"]]:
    """Views at the backbone's size and at the PDN's.

    Args:
      photographs: view `i` shows photograph `i % p`.
      ids: of the views.
      recipe: how views are made; `seed` and the id determine a view.
    """
    key = jax.random.key(0)
    for number in recipe.seed:
        key = jax.random.fold_in(key, number)

    def make(view_id: Array) -> tuple[Array, Array]:
        keys = jax.random.split(jax.random.fold_in(key, view_id), 3)
        views = _crop(photographs[view_id % len(photographs)], keys[0], recipe)
        if recipe.mixup_probability:
            blend, weight, index = jax.random.split(keys[1], 3)
            other = photographs[jax.random.randint(index, (), 0, len(photographs))]
            mixed = jax.random.bernoulli(blend, recipe.mixup_probability)
            share = jnp.where(mixed, jax.random.uniform(weight), 0.0)
            others = _crop(other, keys[2], recipe)
            views = [(1 - share) * a + share * b for a, b in zip(views, others, strict=True)]
        large, small = (jnp.round(view).astype(jnp.uint8) for view in views)
        return large, small

    return jax.vmap(make)(ids)


def _crop(photograph: UInt8[Array, "h w 3"], key: Array, recipe: ViewRecipe) -> list[Array]:
    """A random crop at the two sizes, in 0..255."""
    chosen = _choose(key, recipe)
    image = photograph.astype(jnp.float32)
    gray = jnp.round(image @ jnp.asarray(_LUMINANCE))[..., None]
    image = jnp.where(chosen.gray, gray, image)
    image = jnp.round(chosen.darkest + chosen.contrast * image)
    views = []
    for side in (recipe.backbone_size, VIEW_SIZE):
        rows = _resize_matrix(chosen.top, chosen.height, image.shape[0], side)
        columns = _resize_matrix(chosen.left, chosen.width, image.shape[1], side)
        rows = jnp.where(chosen.flip_rows, rows[::-1], rows)
        columns = jnp.where(chosen.flip_columns, columns[::-1], columns)
        view = jnp.einsum("yh,hwc,xw->yxc", rows, image, columns)
        views.append(jnp.where(chosen.transpose, view.swapaxes(0, 1), view))
    return views


def _choose(key: Array, recipe: ViewRecipe) -> _Choices:
    area, aspect, top, left, mirror, gray, contrast, darkest = jax.random.uniform(key, (8,))
    whole = recipe.smallest_area == 1
    area = recipe.smallest_area + area * (1 - recipe.smallest_area)
    aspect = 1.0 if whole else jnp.exp((2 * aspect - 1) * jnp.log(4 / 3))
    height = jnp.minimum(1.0, jnp.sqrt(area / aspect))
    width = jnp.minimum(1.0, jnp.sqrt(area * aspect))
    turn = jax.random.randint(jax.random.fold_in(key, 1), (), 0, 4 if recipe.turns else 1)
    mirrored = (mirror < 0.5) & (not whole)
    contrast = recipe.smallest_contrast**contrast
    return _Choices(
        top=top * (1 - height),
        left=left * (1 - width),
        height=height,
        width=width,
        # Quarter turns as flips before a transposition.
        flip_rows=(turn == 2) | (turn == 3),
        flip_columns=((turn == 1) | (turn == 2)) ^ mirrored,
        transpose=turn % 2 == 1,
        gray=gray < recipe.grayscale_probability,
        contrast=contrast,
        darkest=darkest * 255 * (1 - contrast),
    )


def _resize_matrix(
    start: Float[Array, ""], length: Float[Array, ""], source: int, side: int
) -> Float[Array, "{side} {source}"]:
    """The matrix of Pillow's bilinear resize of the part `[start, start + length)` of an axis.

    Args:
      start: as a fraction of the axis.
      length: as a fraction of the axis.
      source: pixels of the whole axis.
      side: pixels of the result.
    """
    step = length * source / side
    centers = start * source + (jnp.arange(side) + 0.5) * step
    distances = jnp.abs(jnp.arange(source) + 0.5 - centers[:, None])
    weights = jnp.maximum(0.0, 1 - distances / jnp.maximum(step, 1.0))
    return weights / weights.sum(1, keepdims=True)

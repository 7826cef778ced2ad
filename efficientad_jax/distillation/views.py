"""Views: crops of photographs as the backbone and the PDN get to see them.

A view follows from the seed and its number alone. So it is the same in whichever process and
thread it is made, and a run that was stopped goes on with the views that it would have seen.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import grain
import numpy as np
from absl import flags
from jaxtyping import Float, Int, UInt8
from PIL import Image

from efficientad_jax.distillation.photographs import Photographs, read_photograph

# A view is this many pixels a side for the PDN, which describes it at this many places a side.
# With the paper's 512 pixels a side for the backbone, its stride of 8 falls on the PDN's of 4
# (Algorithm 3, lines 17 and 19).
VIEW_SIZE = 256
TARGET_SIZE = 64

_TURNS = (
    None,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
)

# Where there are no worker processes.
_THREADS = 2


class ViewRecipe(NamedTuple):
    """How views are made of photographs.

    Attributes:
      seed: of every random choice; views of other seeds are independent.
      smallest_area: the crop's part of the photograph's area is drawn from `[smallest_area, 1]`;
        1 takes the whole photograph, as the paper does.
      smallest_contrast: the part of the range of brightness that a view keeps is drawn from
        `[smallest_contrast, 1]`, uniformly in its logarithm, and lies anywhere in the range; 1
        leaves brightness alone, as the paper does.
      grayscale_probability: how often colour is removed.
      backbone_size: height and width for the backbone, in pixels.
      turns: whether views are turned by a random number of quarter turns.
      mixup_probability: how often a view is blended with one of another photograph, at a weight
        drawn uniformly from [0, 1] (Zhang et al., ICLR 2018; the backbone describes the blend, so
        that no label has to be mixed).
    """

    seed: tuple[int, ...]
    smallest_area: float
    smallest_contrast: float
    grayscale_probability: float
    backbone_size: int
    turns: bool = False
    mixup_probability: float = 0.0


class Views(NamedTuple):
    """A view, or a batch of them.

    Attributes:
      numbers: which views they are.
      large: at the size of the backbone.
      small: at the PDN's.
      seconds: that reading, decoding, cropping and resizing each took.
    """

    numbers: Int[np.ndarray, "*n"]
    large: UInt8[np.ndarray, "*n s s 3"]
    small: UInt8[np.ndarray, "*n 256 256 3"]
    seconds: Float[np.ndarray, "*n"]


def random_view(
    image: Image.Image,
    rng: np.random.Generator,
    recipe: ViewRecipe,
    other: Image.Image | None = None,
) -> tuple[UInt8[np.ndarray, "s s 3"], UInt8[np.ndarray, "256 256 3"]]:
    """A random crop of an RGB photograph, at the backbone's size and at the PDN's.

    Args:
      image: the photograph.
      rng: decides everything.
      recipe: what is random.
      other: a photograph of which a crop is blended in; None for none.
    """
    large, small = _crops(image, rng, recipe)
    if other is not None:
        weight = rng.random()
        large, small = (
            Image.blend(a, b, weight)
            for a, b in zip((large, small), _crops(other, rng, recipe), strict=True)
        )
    return np.asarray(large), np.asarray(small)


def _crops(
    image: Image.Image, rng: np.random.Generator, recipe: ViewRecipe
) -> tuple[Image.Image, Image.Image]:
    width, height = image.size
    whole = recipe.smallest_area == 1
    area = rng.uniform(recipe.smallest_area, 1.0)
    aspect = 1.0 if whole else np.exp(rng.uniform(-1, 1) * np.log(4 / 3))
    crop_width = min(1.0, np.sqrt(area * aspect)) * width
    crop_height = min(1.0, np.sqrt(area / aspect)) * height
    left = rng.uniform(0, width - crop_width)
    top = rng.uniform(0, height - crop_height)
    box = (left, top, left + crop_width, top + crop_height)
    if not whole and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < recipe.grayscale_probability:
        image = image.convert("L").convert("RGB")
    if recipe.smallest_contrast < 1:
        kept = recipe.smallest_contrast ** rng.random()
        darkest = rng.uniform(0, 255 * (1 - kept))
        image = image.point([round(darkest + kept * level) for level in range(256)] * 3)
    large, small = (
        image.resize((side, side), Image.Resampling.BILINEAR, box=box)
        for side in (recipe.backbone_size, VIEW_SIZE)
    )
    turn = _TURNS[rng.integers(4)] if recipe.turns else None
    return (large, small) if turn is None else (large.transpose(turn), small.transpose(turn))


def view_batches(
    photographs: Photographs,
    order: Int[np.ndarray, " photographs"],
    recipe: ViewRecipe,
    numbers: Int[np.ndarray, "batches rows"],
    workers: int,
) -> Iterator[Views]:
    """Makes batches of views, ahead of their use; the same ones however many workers there are.

    Args:
      photographs: to make views of.
      order: which of them to take, in this order, again and again: view `i` is one of photograph
        `order[i % len(order)]`.
      recipe: how.
      numbers: the views of each batch.
      workers: processes that make them; with 0, threads of this process do.

    Raises:
      InputError: a photograph cannot be read.
    """
    make = partial(_make_view, photographs, order, recipe)
    rows = numbers.shape[1]
    batches = grain.MapDataset.source(numbers.ravel().tolist()).map(make).batch(rows)
    if workers == 0:
        yield from batches.to_iter_dataset(
            grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=2 * _THREADS)
        )
        return
    if not flags.FLAGS.is_parsed():  # outside of a command; grain reads a flag of its own
        flags.FLAGS.mark_as_parsed()
    stream = iter(
        batches.to_iter_dataset(
            grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        ).mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
            worker_init_fn=_begin_worker,
        )
    )
    try:
        yield from stream
    finally:
        stream.close()


def makers(workers: int) -> int:
    """How many views are made at the same time."""
    return workers or _THREADS


def _make_view(
    photographs: Photographs, order: Int[np.ndarray, " n"], recipe: ViewRecipe, number: int
) -> Views:
    start = time.perf_counter()
    index = int(order[number % len(order)])
    image = Image.fromarray(read_photograph(photographs, index))
    rng, other = np.random.default_rng((*recipe.seed, number)), None
    if recipe.mixup_probability and rng.random() < recipe.mixup_probability:
        other = Image.fromarray(read_photograph(photographs, int(rng.choice(order))))
    large, small = random_view(image, rng, recipe, other)
    seconds = np.asarray(time.perf_counter() - start)
    return Views(np.asarray(number), large, small, seconds)


def _begin_worker(worker: int, workers: int) -> None:
    """Leaves Ctrl-C to the main process, and ends with it even if it is killed."""
    del worker, workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

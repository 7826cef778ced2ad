"""Views: crops of photographs, at the sizes that the backbone and the PDN see.

Only the seed and its id determine a view. It is the same in whichever process and thread it is
made, and a run that was stopped resumes with the views that it would have seen.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Generator
from functools import partial
from typing import NamedTuple

import grain
import numpy as np
from absl import flags
from jaxtyping import Float, Int, UInt8
from PIL import Image

from efficientad_jax.distillation.photographs import Photographs, read_photograph

# Pixels per side of a view for the PDN, and positions per side at which it has targets. With the
# paper's 512 pixels per side for the backbone, its stride of 8 matches the PDN's stride of 4
# (Algorithm 3, lines 17 and 19).
VIEW_SIZE = 256
TARGET_SIZE = 64

_TURNS = (
    None,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
)

# Number of threads that make views when there are no worker processes.
_THREADS = 2


class ViewRecipe(NamedTuple):
    """How views are made from photographs.

    Attributes:
      seed: of all random choices; views of different seeds are independent.
      smallest_area: the fraction of the photograph's area that the crop has is drawn from
        `[smallest_area, 1]`; 1 takes the whole photograph, as in the paper.
      smallest_contrast: the fraction of the range of brightness that a view keeps is drawn from
        `[smallest_contrast, 1]`, log-uniformly, and lies anywhere in the range; 1 leaves the
        brightness unchanged, as in the paper.
      grayscale_probability: how often color is removed.
      backbone_size: height and width of the backbone's image, in pixels.
      turns: whether views are turned by a random number of quarter turns.
      mixup_probability: how often a view is blended with a view of another photograph, with a
        weight drawn uniformly from [0, 1] (Zhang et al., ICLR 2018). The targets are the backbone's
        features of the blend, so no labels are mixed.
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
      ids: of the views.
      large: the backbone's images, RGB in 0..255.
      small: the PDN's images, RGB in 0..255.
      seconds: time to read, decode, crop and resize each view.
    """

    ids: Int[np.ndarray, "*n"]
    large: UInt8[np.ndarray, "*n s s 3"]
    small: UInt8[np.ndarray, "*n 256 256 3"]
    seconds: Float[np.ndarray, "*n"]


def random_view(
    image: Image.Image,
    rng: np.random.Generator,
    recipe: ViewRecipe,
    *,
    other: Image.Image | None = None,
) -> tuple[UInt8[np.ndarray, "s s 3"], UInt8[np.ndarray, "256 256 3"]]:
    """A random crop of an RGB photograph, at the backbone's size and at the PDN's.

    Args:
      image: the photograph.
      rng: makes all random choices.
      recipe: which choices are random.
      other: another photograph, a crop of which is blended in; None for none.
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
    *,
    ids: Int[np.ndarray, "batches rows"],
    workers: int,
) -> Generator[Views]:
    """Makes batches of views ahead of their use. They do not depend on the number of workers.

    Args:
      photographs: the photographs.
      order: indices of the photographs to take, in this order, again and again: view `i` shows
        photograph `order[i % len(order)]`.
      recipe: how views are made.
      ids: of the views of each batch.
      workers: number of processes that make views; with 0, threads of this process do.

    Raises:
      InputError: a photograph cannot be read.
    """
    make = partial(_make_view, photographs=photographs, order=order, recipe=recipe)
    if not ids.size:
        return
    rows = ids.shape[1]
    batches = grain.MapDataset.source(ids.ravel().tolist()).map(make).batch(rows)
    if workers == 0:
        yield from batches.to_iter_dataset(
            grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=2 * _THREADS)
        )
        return
    if not flags.FLAGS.is_parsed():  # without a command line; grain reads one of its flags
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


def parallel_views(workers: int) -> int:
    """Number of views that are made at the same time."""
    return workers or _THREADS


def _make_view(
    view_id: int,
    *,
    photographs: Photographs,
    order: Int[np.ndarray, " n"],
    recipe: ViewRecipe,
) -> Views:
    start = time.perf_counter()
    index = int(order[view_id % len(order)])
    image = Image.fromarray(read_photograph(photographs, index))
    rng, other = np.random.default_rng((*recipe.seed, view_id)), None
    if recipe.mixup_probability and rng.random() < recipe.mixup_probability:
        other = Image.fromarray(read_photograph(photographs, int(rng.choice(order))))
    large, small = random_view(image, rng, recipe, other=other)
    seconds = np.asarray(time.perf_counter() - start)
    return Views(np.asarray(view_id), large, small, seconds)


def _begin_worker(worker: int, workers: int) -> None:
    """Leaves Ctrl-C to the main process, and exits when that exits or is killed."""
    del worker, workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

"""How well features tell defects apart by themselves: distances to those of good images.

The yardstick for a teacher and for the backbones it is distilled from, as in PatchCore (Roth et
al., CVPR 2022) without its choice of a coreset: nothing is trained.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

from efficientad_jax.networks.channel_statistics import channel_statistics

BANK_PATCHES = 20_000
LARGEST = 5

# From one image to its features.
Describe = Callable[[UInt8[Array, "1 h w 3"]], Float[Array, "1 fh fw c"]]


class NeighborScores(NamedTuple):
    """Scores of images; a patch's distance is that to its nearest neighbor in the bank.

    Attributes:
      maximum: the largest distance of the patches of an image.
      mean_of_largest: the mean of the five largest.
    """

    maximum: Float32[np.ndarray, " n"]
    mean_of_largest: Float32[np.ndarray, " n"]


def nearest_neighbor_scores(
    describe: Describe,
    train_images: Sequence[UInt8[np.ndarray, "h w 3"]] | UInt8[np.ndarray, "m h w 3"],
    test_images: Sequence[UInt8[np.ndarray, "h w 3"]] | UInt8[np.ndarray, "n h w 3"],
    *,
    patches: int = BANK_PATCHES,
    spacing: int = 1,
    seed: int = 0,
) -> NeighborScores:
    """Scores test images by Euclidean distances in features standardized channel by channel.

    Args:
      describe: the features of one image; a pure function.
      train_images: good images, at least one; mean and standard deviation of the channels are
        taken over them.
      test_images: images to score.
      patches: size of the bank, a random choice of all patches of the training images.
      spacing: takes every `spacing`-th patch in both directions, in training and test images.
      seed: of the choice.
    """
    compute = jax.jit(lambda image: describe(image)[0, ::spacing, ::spacing])
    first = jax.eval_shape(compute, train_images[0][None])
    per_image = first.shape[0] * first.shape[1]
    total = per_image * len(train_images)
    chosen = np.random.default_rng(seed).choice(total, min(patches, total), replace=False)
    bank = np.empty((len(chosen), first.shape[2]), np.float32)

    def training_features() -> Iterator[Array]:
        for i, image in enumerate(train_images):
            features = compute(image[None])
            rows = np.flatnonzero(chosen // per_image == i)
            flat = np.asarray(features, np.float32).reshape(per_image, -1)
            bank[rows] = flat[chosen[rows] % per_image]
            yield features[None]

    statistics = channel_statistics(training_features())
    mean, std = jnp.asarray(statistics.mean), jnp.asarray(statistics.std)
    neighbors = (jnp.asarray(bank) - mean) / std
    lengths = jnp.square(neighbors).sum(1)

    @jax.jit
    def largest_distances(features: Array, neighbors: Array, lengths: Array) -> Array:
        rows = (features.reshape(per_image, -1) - mean) / std
        squares = lengths - 2 * rows @ neighbors.T
        nearest = squares.min(1) + jnp.square(rows).sum(1)
        return jnp.sqrt(jnp.maximum(jax.lax.top_k(nearest, min(LARGEST, per_image))[0], 0))

    found = np.array(
        [largest_distances(compute(image[None]), neighbors, lengths) for image in test_images],
        np.float32,
    ).reshape(len(test_images), -1)
    return NeighborScores(found[:, 0], found.mean(1))

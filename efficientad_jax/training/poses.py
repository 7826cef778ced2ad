"""Turned and mirrored training images, for parts that lie in any pose."""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from efficientad_jax.config import Config
from efficientad_jax.data.framing import Framing
from efficientad_jax.errors import InputError

_log = logging.getLogger(__name__)

# Of how many images the features are compared: of half of them with those of the other half.
_IMAGES = 48
_PATCHES_PER_IMAGE = 100
_REFERENCE_PATCHES = 20_000
# How much farther from the other images a turned image may be than the image as it is. Magnetic
# tiles upside down are 1.05 times as far and on their side 1.65 times; pills, which lie one way, at
# least 1.14 times.
_TOLERANCE = 1.1


class Pose(NamedTuple):
    """How an image is turned.

    Attributes:
      mirrored: whether left and right are exchanged, before it is turned.
      quarter_turns: counterclockwise, 0..3.
    """

    mirrored: bool
    quarter_turns: int


UPRIGHT = Pose(False, 0)


def all_poses(height: int, width: int) -> tuple[Pose, ...]:
    """The poses that keep the size of an image; `UPRIGHT` is the first."""
    turns = (0, 1, 2, 3) if height == width else (0, 2)
    return tuple(Pose(mirrored, turn) for mirrored in (False, True) for turn in turns)


def turn(images: UInt8[np.ndarray, "n h w 3"], pose: Pose) -> UInt8[np.ndarray, "n h w 3"]:
    """The images in a pose that keeps their size. Values are moved and not interpolated."""
    mirrored = images[:, :, ::-1] if pose.mirrored else images
    return np.rot90(mirrored, pose.quarter_turns, axes=(1, 2))


def in_poses(
    images: UInt8[np.ndarray, "n h w 3"], poses: Sequence[Pose], most: int | None = None
) -> UInt8[np.ndarray, "m h w 3"]:
    """Each image in all poses, or in `most` of them.

    Args:
      images: all are taken as they are.
      poses: `UPRIGHT` and others. If there may be few, images get different ones.
      most: the number of poses of an image, None for all.
    """
    others = poses[1:]
    copies = min(most or len(poses), len(poses))
    result = [images]
    for copy in range(copies - 1):
        turned = np.empty_like(images)
        for i in range(len(images)):
            pose = others[(i * (copies - 1) + copy) % len(others)]
            turned[i : i + 1] = turn(images[i : i + 1], pose)
        result.append(turned)
    return np.concatenate(result)


# Yields the teacher's features of images, in batches.
Compute = Callable[[UInt8[np.ndarray, "n h w 3"]], Iterable[Float[Any, "b fh fw c"]]]


def images_in_poses(
    config: Config,
    framing: Framing,
    images: UInt8[np.ndarray, "n h w 3"],
    *,
    compute: Compute,
    features_gb: float,
    file: Path,
) -> tuple[UInt8[np.ndarray, "m h w 3"], tuple[Pose, ...]]:
    """The training images in the poses of `config.train.poses`, and these poses.

    Images get no more poses than the cache has room for their features. Where it has none for those
    of the images, or with `config.train.shift`, none are cached, and all poses are shown.

    Args:
      config: of the training.
      framing: which part of an image counts; it may differ between images as they are only.
      images: at the networks' input size.
      compute: see `fitting_poses`.
      features_gb: size in GB of the cached features of the images as they are.
      file: holds the poses that the run has chosen, if it was started before.

    Raises:
      InputError: images that are padded, tiled or masked are to be turned.
    """
    choice = config.train.poses
    if choice == "upright":
        return images, (UPRIGHT,)
    if framing.fit != "resize" or config.dataset.ignore_mask:
        by = "an ignore mask" if config.dataset.ignore_mask else f"model.fit = {framing.fit!r}"
        how = "; or give config.model.fit = 'resize'" if framing.fit == "pad" else ""
        raise InputError(f"config.train.poses = {choice!r}: expected 'upright' with {by}{how}")
    poses = chosen_poses(choice, images, compute, file=file)
    most = 0 if config.train.shift else int(config.train.feature_cache_gb / features_gb)
    return in_poses(images, poses, most or None), poses


def chosen_poses(
    choice: str, images: UInt8[np.ndarray, "n h w 3"], compute: Compute, *, file: Path
) -> tuple[Pose, ...]:
    """The poses of the training images.

    Args:
      choice: `config.train.poses`.
      images: at the networks' input size.
      compute: see `fitting_poses`.
      file: holds the poses that the run has chosen, if it was started before.
    """
    possible = all_poses(*images.shape[1:3])
    if choice != "auto" or len(images) < 2:
        return possible if choice == "all" else (UPRIGHT,)
    if file.is_file():
        return tuple(Pose(*pose) for pose in json.loads(file.read_text()))
    poses = fitting_poses(images, compute)
    _log.info("training: %d of %d poses of the images", len(poses), len(possible))
    return poses


def fitting_poses(images: UInt8[np.ndarray, "n h w 3"], compute: Compute) -> tuple[Pose, ...]:
    """The poses in which these images look like others of the same part.

    In such a pose the teacher's features of an image are, on average, as close to their nearest
    neighbors in other images as those of the image as it is.

    Args:
      images: at least 2, at the networks' input size.
      compute: yields the teacher's features of images, in batches.
    """
    # Half of the time that `experiments.train` takes to start would be spent on this import.
    from sklearn.neighbors import NearestNeighbors

    def features(batch: UInt8[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b fh fw c"]:
        return np.concatenate([np.asarray(part) for part in compute(batch)])

    generator = np.random.default_rng(0)
    chosen = images[generator.permutation(len(images))[:_IMAGES]]
    reference, compared = chosen[::2], chosen[1::2]
    patches = features(reference)
    channels = patches.shape[-1]
    patches = patches.reshape(-1, channels)
    mean, std = patches.mean(0), patches.std(0)
    std[std == 0] = 1
    bank = patches[generator.permutation(len(patches))[:_REFERENCE_PATCHES]]
    neighbors = NearestNeighbors(n_neighbors=1, algorithm="brute").fit((bank - mean) / std)

    def distance(pose: Pose) -> float:
        of_pose = features(np.ascontiguousarray(turn(compared, pose)))
        of_pose = of_pose.reshape(len(compared), -1, channels)
        places = np.random.default_rng(1).permutation(of_pose.shape[1])[:_PATCHES_PER_IMAGE]
        queries = (of_pose[:, places].reshape(-1, channels) - mean) / std
        return float(neighbors.kneighbors(queries)[0].mean())

    upright = distance(UPRIGHT)
    others = all_poses(*images.shape[1:3])[1:]
    return (UPRIGHT, *(pose for pose in others if distance(pose) <= _TOLERANCE * upright))

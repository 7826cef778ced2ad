"""The teacher's features of the training images: their statistics, and a cache of them."""

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from itertools import islice
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Float16, PyTree, UInt8

from efficientad_jax.config import Config
from efficientad_jax.networks.channel_statistics import ChannelStatistics, channel_statistics
from efficientad_jax.networks.ignored import Ignored
from efficientad_jax.networks.pdn import PatchDescriptionNetwork, output_size
from efficientad_jax.networks.preprocessing import normalize_images, to_unit_range
from efficientad_jax.networks.teacher import Teacher, normalize_teacher
from efficientad_jax.storage.cache import processor_features
from efficientad_jax.storage.feature_cache import cached_features

_log = logging.getLogger(__name__)

_IMAGES_PER_DISPATCH = 16

# A tile of a training image, and which of its outputs are ignored; None if all count.
TileOfImage = tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "oh ow"] | None]


def normalize_over_images(
    network: PatchDescriptionNetwork,
    teacher: Teacher,
    images: UInt8[np.ndarray, "n h w 3"],
    *,
    config: Config,
    ignored: Ignored | None = None,
    tiles: Iterable[TileOfImage] | None = None,
    disk_cache_gb: float = 0.0,
) -> tuple[PyTree, Float16[np.ndarray, "n oh ow c"] | None]:
    """Normalizes the teacher over the training images (Algorithm 1, lines 3-11).

    Args:
      network: the teacher's.
      teacher: before it is normalized.
      images: of the training.
      config: of the training.
      ignored: what is ignored of the images; such outputs do not count.
      tiles: of all images, with the ignored outputs of each, if they are cut into tiles; else None.
      disk_cache_gb: size in GB of the features that all trainings keep on disk, 0 for none.

    Returns:
      Parameters of the normalized teacher, and its features of each image if they fit into
      `config.train.feature_cache_gb` gigabytes, so that training does not compute them again.
      There are none with `config.train.shift`.
    """
    compute = _describe(network, teacher)
    if tiles is not None:
        return _normalized(teacher, _statistics(_features_of_tiles(compute, tiles))), None
    fits = features_fit(images, network, config)
    features = np.empty(_features_shape(images, network), np.float16) if fits else None

    def batches() -> Iterator[Float[Any, "b oh ow c"]]:
        start = 0
        for batch in _teacher_features(
            network, teacher, images, compute=compute, config=config, disk_cache_gb=disk_cache_gb
        ):
            if features is not None:
                features[start : start + len(batch)] = batch
            start += len(batch)
            if ignored is None:
                yield batch
            else:
                values = np.asarray(ignored.of(slice(start - len(batch), start)).values)
                yield _counted(batch, values)

    statistics = _statistics(batches())
    if features is not None:
        for feature in features:
            feature[:] = (feature - statistics.mean) / statistics.std
    return _normalized(teacher, statistics), features


def _statistics(batches: Iterator[Float[Any, "b oh ow c"]]) -> ChannelStatistics:
    statistics = channel_statistics(batches)
    if statistics.constant_channels:
        _log.warning(
            "teacher: %d of %d channels are constant on all training images (%s) and are not "
            "scaled",
            len(statistics.constant_channels),
            len(statistics.mean),
            ", ".join(map(str, statistics.constant_channels[:20])),
        )
    return statistics


def _normalized(teacher: Teacher, statistics: ChannelStatistics) -> PyTree:
    return normalize_teacher(teacher.params, teacher.size, statistics)


def _counted(
    features: Float[Any, "b oh ow c"], ignored: Bool[np.ndarray, "_b oh ow"]
) -> Float[Any, "1 1 k c"]:
    """The features of the outputs that count, as one row."""
    counted = np.broadcast_to(~ignored, features.shape[:3])
    return features[counted][None, None]


def _features_of_tiles(
    compute: Callable[[Any], Float[Any, "b oh ow c"]], tiles: Iterable[TileOfImage]
) -> Iterator[Float[Any, "b oh ow c"]]:
    """The features of all tiles, in batches, without those of ignored outputs."""
    remaining = iter(tiles)
    while batch := list(islice(remaining, _IMAGES_PER_DISPATCH)):
        features = compute(np.stack([pixels for pixels, _ in batch]))
        if batch[0][1] is None:
            yield features
        elif (counted := _counted(features, np.stack([i for _, i in batch if i is not None]))).size:
            yield counted


def teacher_features(
    network: PatchDescriptionNetwork, teacher: Teacher, images: UInt8[np.ndarray, "n h w 3"]
) -> Iterator[Float[Any, "b oh ow c"]]:
    """The features of all images by the teacher before it is normalized, in batches."""
    compute = _describe(network, teacher)
    for i in range(0, len(images), _IMAGES_PER_DISPATCH):
        yield compute(images[i : i + _IMAGES_PER_DISPATCH])


def _describe(
    network: PatchDescriptionNetwork, teacher: Teacher
) -> Callable[[Any], Float[Any, "b oh ow c"]]:
    """The teacher before it is normalized, image by image."""

    @jax.jit
    def compute(batch: jax.Array) -> jax.Array:
        def features_of(image: jax.Array) -> jax.Array:
            return network.apply(teacher.params, normalize_images(to_unit_range(image[None])))[0]

        return jax.lax.map(features_of, batch)

    return compute


def _teacher_features(
    network: PatchDescriptionNetwork,
    teacher: Teacher,
    images: UInt8[np.ndarray, "n h w 3"],
    *,
    compute: Callable[[Any], Float[Any, "b oh ow c"]],
    config: Config,
    disk_cache_gb: float,
) -> Iterator[Float[Any, "b oh ow c"]]:
    """The features of all images, in batches."""
    if not disk_cache_gb:
        for i in range(0, len(images), _IMAGES_PER_DISPATCH):
            yield compute(images[i : i + _IMAGES_PER_DISPATCH])
        return
    # In other versions, on other devices and with other numbers of threads, the last bits differ.
    versions = version("efficientad-jax"), jax.__version__
    cores = os.environ.get("NPROC"), len(os.sched_getaffinity(0))
    device = jax.devices()[0].device_kind, processor_features()
    yield from cached_features(
        images,
        lambda batch: np.asarray(compute(batch), np.float32),
        identity=repr((teacher.sha256, network, versions, device, cores)),
        dataset=repr((config.dataset, config.category)),
        batch_size=_IMAGES_PER_DISPATCH,
        limit_gb=disk_cache_gb,
    )


def features_fit(images: np.ndarray, network: PatchDescriptionNetwork, config: Config) -> bool:
    """Whether the teacher's features of the images can be cached, and fit into the cache."""
    train = config.train
    return not train.shift and features_gb(images, network) <= train.feature_cache_gb


def features_gb(images: np.ndarray, network: PatchDescriptionNetwork) -> float:
    """The size in GB of the cached features of the images."""
    return math.prod(_features_shape(images, network)) * np.dtype(np.float16).itemsize / 1e9


def _features_shape(
    images: np.ndarray, network: PatchDescriptionNetwork
) -> tuple[int, int, int, int]:
    size = output_size(images.shape[1], images.shape[2], network.padding)
    return len(images), *size, network.out_channels

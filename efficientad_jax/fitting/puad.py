"""Fits PUAD to the training images of a detector.

Nothing is trained: the networks compute each training and validation image once.
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from efficientad_jax.data.framing import Framing, input_sizes, masked_pixels
from efficientad_jax.data.image_rows import rows_of_array
from efficientad_jax.data.loading import Dataset, ImageSet
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.puad.distance import (
    abstract_statistics,
    distances_on_host,
    fit_statistics,
)
from efficientad_jax.detection.puad.standardization import check_count, standardize
from efficientad_jax.detection.tiling import compute_tiled_maps


class Measured(NamedTuple):
    """Scores and mean features of some images.

    Attributes:
      scores: of the maps, without PUAD.
      features: mean features, see `puad.distance.mean_features`.
    """

    scores: Float[np.ndarray, " n"]
    features: Float[np.ndarray, "n c"]


def check_dataset(dataset: Dataset) -> None:
    """Checks that there are enough images for PUAD, before a training for it starts.

    Raises:
      InputError: there are not.
    """
    check_count("training", len(dataset.train.names))
    check_count("validation", len(dataset.validation.names))


def fit_puad(detector: Detector, dataset: Dataset) -> Detector:
    """The detector with PUAD in its score, and the threshold for the same rate.

    Args:
      detector: calibrated.
      dataset: of its training: statistics are fitted to the training images, scale and scores are
        those of the validation images.

    Raises:
      InputError: there are too few images, or they do not vary.
      DivergenceError: a feature is not finite.
    """
    check_dataset(dataset)
    # Any statistics do: features do not depend on them.
    blank = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), abstract_statistics(detector.spec.out_channels)
    )
    measuring = replace(
        detector,
        params=detector.params._replace(puad=blank),
        calibration=detector.calibration._replace(puad=None),
    )
    statistics = fit_statistics(measure(measuring, dataset.train).features)
    validation = measure(measuring, dataset.validation)
    distances = distances_on_host(statistics, validation.features)
    fitted = replace(
        detector,
        params=detector.params._replace(puad=statistics),
        puad=standardize(validation.scores, distances),
    )
    return fitted.with_puad(True)


def measure(detector: Detector, images: ImageSet) -> Measured:
    """Scores without PUAD, and mean features, of images of a dataset.

    Args:
      detector: with statistics of PUAD, whose score it does not use.
      images: cut out, resized or enlarged already.
    """
    if detector.framing.fit == "tile":
        return _measure_tiled(detector, images)
    scores, features = [], []
    size = detector.batch_size(len(images.names))
    for start in range(0, len(images.names), size):
        rows = [min(i, len(images.names) - 1) for i in range(start, start + size)]
        seen = [images.sizes[i] for i in rows]
        own_masks = None if images.own_masks is None else images.own_masks[rows]
        anomalies = jax.device_get(detector.detect(images.images[rows], seen, own_masks))
        scores.append(anomalies.scores)
        features.append(anomalies.features)
    count = len(images.names)
    return Measured(np.concatenate(scores)[:count], np.concatenate(features)[:count])


def _measure_tiled(detector: Detector, images: ImageSet) -> Measured:
    sizes = input_sizes(detector.framing, images.sizes, detector.spec.input_size)
    # The region of interest is cut out already, and small images are enlarged.
    framing = Framing(None, masked_pixels(detector.framing, sizes[0]), "tile")
    of_regions = replace(detector, framing=framing)
    tiled = [
        compute_tiled_maps(of_regions, rows_of_array(image[:height, :width]))
        for image, (height, width) in zip(images.images, sizes, strict=True)
    ]
    return Measured(
        np.array([maps.score for maps in tiled], np.float32),
        np.array([maps.features for maps in tiled], np.float32),
    )

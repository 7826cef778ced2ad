"""The sum of EfficientAD's score and the distance of PUAD, each in standard deviations.

Published as `(s - mean(s)) / std(s) + (d - mean(d)) / std(d)`, for the score `s` of the map and the
distance `d`. Here the sum is multiplied by `std(s)` and `mean(s)` is added: the order of images is
the same, and scores keep the scale of the map, so that a threshold with PUAD can be compared with
one without it.

Means and deviations come from every third validation image, and the threshold from the others: the
scores that a threshold is chosen by are then those of images that had no part in the score.
"""

from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Array, Bool, Float

from efficientad_jax.errors import InputError

# Of validation images, of which 4 then set the scale, and of training images.
FEWEST = 10

_Scores = TypeVar("_Scores", np.ndarray, Array)


class PuadScale(NamedTuple):
    """How the distance is added to the score of the map.

    Attributes:
      distance_mean: mean distance of normal images.
      weight: `std(s) / std(d)`, the deviation of the maps' scores by that of the distances.
    """

    distance_mean: float
    weight: float


class PuadScores(NamedTuple):
    """The scores of the validation images with and without PUAD, by one rule of the map's score.

    Attributes:
      scale: of the distance.
      combined: scores with PUAD of the images that did not set the scale.
      plain: scores without PUAD of all images.
    """

    scale: PuadScale
    combined: tuple[float, ...]
    plain: tuple[float, ...]


def sets_scale(images: int) -> Bool[np.ndarray, " n"]:
    """Which of the validation images, in the order of their names, set the scale: every third."""
    return np.arange(images) % 3 == 0


def add_distances(
    scores: _Scores, distances: _Scores, scale: PuadScale | Float[Array, "2"]
) -> _Scores:
    """The scores with PUAD."""
    distance_mean, weight = scale
    return scores + weight * (distances - distance_mean)  # pyright: ignore[reportReturnType]


def standardize(scores: Float[np.ndarray, " n"], distances: Float[np.ndarray, " n"]) -> PuadScores:
    """Chooses the scale by a part of the validation images, and scores the others with it.

    Args:
      scores: of the validation images without PUAD.
      distances: of the same images.

    Raises:
      InputError: there are fewer than `FEWEST` images, or their scores or distances are the same.
    """
    check_count("validation", len(scores))
    part = sets_scale(len(scores))
    chosen = np.array([scores[part], distances[part]], np.float64)
    deviations = chosen.std(axis=1)
    if not deviations.min() > 0:
        raise InputError(
            f"PUAD: scores or distances of {part.sum()} validation images are all the same "
            f"(deviations {deviations[0]:g} and {deviations[1]:g}), expected them to vary"
        )
    scale = PuadScale(float(chosen[1].mean()), float(deviations[0] / deviations[1]))
    combined = add_distances(scores, distances, scale)[~part]
    return PuadScores(scale, tuple(combined.tolist()), tuple(scores.tolist()))


def check_count(kind: str, images: int) -> None:
    """Checks that there are enough images of a kind, 'training' or 'validation'.

    Raises:
      InputError: there are not.
    """
    if images < FEWEST:
        raise InputError(
            f"PUAD: {images} {kind} images, expected at least {FEWEST}; give more images, or leave "
            "config.calibration.puad off"
        )

"""The report of `efficientad set-threshold --defects`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from efficientad_jax.config import read_config
from efficientad_jax.data.examples import GOOD
from efficientad_jax.data.files import list_images
from efficientad_jax.data.framing import seen_size
from efficientad_jax.data.loading import load_configured_dataset
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.threshold import percent
from efficientad_jax.errors import InputError
from efficientad_jax.known_defects.comparison import (
    FEWEST,
    Comparison,
    Inputs,
    compare,
    compared_images,
    comparison_lines,
    recall_lines,
    recalls,
    suggestion,
    way_name,
)

# At which defects are counted for a detector without a threshold.
_RATE = 0.01


def list_defects(folder: Path) -> list[Path]:
    """The images of defects in a folder.

    Raises:
      InputError: the folder holds no images, or a folder of good ones.
    """
    paths = list_images(folder)
    for path in paths:
        if GOOD in (part.casefold() for part in path.relative_to(folder).parts[:-1]):
            raise InputError(
                f"--defects={folder}: holds good images, such as {path}; expected only defects"
            )
    return paths


def report_on_defects(
    detector: Detector, defects: Sequence[Path], images: str
) -> Comparison | None:
    """Prints how many defects are found, and a suggestion.

    Args:
      detector: calibrated.
      defects: images of defects.
      images: folder of good images to compare with; '' for the validation images.

    Returns:
      The suggested way to compute scores, None without one.

    Raises:
      InputError: an image cannot be decoded, or there are no good images.
    """
    count = len(defects)
    scores = np.array([detection.score for detection in detector(list(defects))])
    print(f"{count} defects, {len(detector.validation_scores)} validation images")
    for line in recall_lines(recalls(detector, scores), count):
        print(line)
    if detector.framing.fit == "tile":
        print("ways to compute scores are not compared, as the detector cuts images into tiles")
        return None
    good = _good_images(detector, images)
    good_count = compared_images(detector, len(good.images))
    threshold = detector.threshold
    # A lower rate than that of one image is not known to be kept.
    rate = max(1 / good_count, _RATE if threshold is None else threshold.false_alarm_rate)
    comparisons = compare(detector, good, _load(detector, defects), false_alarm_rate=rate)
    print(f"compared with {good_count} good images, found at {percent(rate)} false alarms:")
    for line in comparison_lines(comparisons, count):
        print(line)
    if min(count, good_count) < FEWEST:
        print(f"suggestion: none, expected at least {FEWEST} defects and {FEWEST} good images")
        return None
    better = suggestion(comparisons)
    if better is None:
        print("suggestion: keep the present score; these images are too few to tell another better")
    else:
        print(f"suggestion: {_in_words(better)}")
    return better


def _in_words(comparison: Comparison) -> str:
    candidate = comparison.candidate
    weights = ""
    if candidate.local_weight != 0.5:
        weights = f", local map with {percent(candidate.local_weight)} of the weight"
    return (
        f"score {way_name(candidate)}{weights}; its AU-ROC is higher by "
        f"{comparison.low:.3f} to {comparison.high:.3f} (--apply saves it)"
    )


def _good_images(detector: Detector, folder: str) -> Inputs:
    """The good images of a folder, or the validation images of the training.

    Raises:
      InputError: they cannot be loaded.
    """
    if folder:
        return _load(detector, list_images(Path(folder)))
    try:
        dataset = load_configured_dataset(read_config(detector.config), detector.framing)
    except InputError as error:
        raise InputError(
            f"{error}; to compare scores, give good images as --images=FOLDER"
        ) from error
    good = dataset.validation
    return Inputs(good.images, good.sizes, good.own_masks)


def _load(detector: Detector, paths: Sequence[Path]) -> Inputs:
    pixels = [detector.decode(path) for path in paths]
    images = [
        detector.network_input(image, str(path)) for image, path in zip(pixels, paths, strict=True)
    ]
    sizes = [(image.shape[0], image.shape[1]) for image in pixels]
    return Inputs(np.stack(images), [seen_size(detector.framing, size) for size in sizes])

"""Chooses a detector's thresholds for other rates; nothing is trained.

    efficientad set-threshold DETECTOR --false-alarm-rate=0.05
    efficientad set-threshold DETECTOR --region-false-positive-rate=0.05
    efficientad set-threshold DETECTOR --region-false-positive-rate=0.05 --smallest-region=30

The first rate is the part of the normal images that may count as anomalous. The second is the part
of them that may have an anomalous region. Thresholds are chosen by the scores of the validation
images, which the detector holds, and are saved in the detector. Another smallest region needs
images, and so does a detector of a version without regions: the validation images of the dataset
that the detector was trained on, or normal images in --images that it was not trained on.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from efficientad_jax.commands.command_line import add_detector, whole_number
from efficientad_jax.config import read_config
from efficientad_jax.data.files import list_images
from efficientad_jax.data.loading import load_configured_dataset
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.threshold import choose_region_rule, region_summary, summary
from efficientad_jax.errors import InputError
from efficientad_jax.evaluation.split_maps import maps_of_split


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the arguments."""
    add_detector(parser)
    add = parser.add_argument
    add(
        "--false-alarm-rate", metavar="RATE", type=float, help="of the score's threshold: in (0, 1)"
    )
    add(
        "--region-false-positive-rate",
        metavar="RATE",
        type=float,
        help="of the pixel threshold: in (0, 1)",
    )
    add(
        "--smallest-region",
        metavar="PIXELS",
        type=whole_number(1),
        help="smallest area of a region (default: the detector's, or 1)",
    )
    add(
        "--images",
        metavar="FOLDER",
        default="",
        help="normal images to choose the pixel threshold by (default: the validation images)",
    )


def run(options: argparse.Namespace) -> int:
    """Chooses the thresholds and saves them."""
    rate, region_rate = options.false_alarm_rate, options.region_false_positive_rate
    if rate is None and region_rate is None:
        raise InputError(
            "--false-alarm-rate, --region-false-positive-rate: neither is given, expected one of "
            "them; see efficientad set-threshold --help"
        )
    if region_rate is None and (options.images or options.smallest_region):
        flag = "--images" if options.images else "--smallest-region"
        raise InputError(f"{flag}: is of regions, expected --region-false-positive-rate with it")
    folder = Path(options.detector)
    detector = Detector.load(folder)
    if rate is not None:
        detector = detector.with_threshold(rate)
    if region_rate is not None:
        detector = _with_region_rule(detector, region_rate, options.smallest_region, options.images)
    detector.save_record(folder)
    if rate is not None and detector.threshold is not None:
        print(f"threshold {summary(detector.threshold)}")
    if region_rate is not None and detector.region_rule is not None:
        print(f"pixel threshold {region_summary(detector.region_rule)}")
    return 0


def _with_region_rule(
    detector: Detector, rate: float, smallest_region: int | None, images: str
) -> Detector:
    """The detector with another pixel threshold; looks at images only if it has to."""
    before = detector.region_rule
    area = smallest_region or (1 if before is None else before.smallest_area)
    if before is not None and before.smallest_area == area and not images:
        return detector.with_region_rate(rate)
    return replace(detector, region_rule=choose_region_rule(_maps(detector, images), rate, area))


def _maps(detector: Detector, folder: str) -> Iterator[Float32[np.ndarray, "_ _"]]:
    """The combined maps of normal images at their own sizes; '' takes the validation images."""
    if folder:
        for file in list_images(Path(folder)):
            yield detector(file).anomaly_map
        return
    dataset = load_configured_dataset(read_config(detector.config), detector.framing)
    yield from maps_of_split(detector, dataset.validation).combined

"""Chooses a detector's thresholds for other rates; nothing is trained.

    efficientad set-threshold DETECTOR --false-alarm-rate=0.05
    efficientad set-threshold DETECTOR --region-false-positive-rate=0.05
    efficientad set-threshold DETECTOR --region-false-positive-rate=0.05 --smallest-region=30
    efficientad set-threshold DETECTOR --defects=FOLDER
    efficientad set-threshold DETECTOR --defects=FOLDER --apply
    efficientad set-threshold DETECTOR --puad=on

The first rate is the part of the normal images that may count as anomalous. The second is the part
of them that may have an anomalous region. Thresholds are chosen by the scores of the validation
images, which the detector holds, and are saved in the detector. Another smallest region needs
images, and so does a detector of a version without regions: the validation images of the dataset
that the detector was trained on, or normal images in --images that it was not trained on.
--defects shows how many known defects are found at this and other thresholds. It compares a few
ways to compute scores, and suggests one if the defects are enough to tell; --apply saves it.
--puad=on adds the distance of PUAD to the score (docs/recipes.md), and prints what that changes.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from efficientad_jax.commands.command_line import add_detector, whole_number
from efficientad_jax.commands.known_defects import list_defects, report_on_defects
from efficientad_jax.config import read_config
from efficientad_jax.data.files import list_images
from efficientad_jax.data.loading import load_configured_dataset
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.threshold import choose_region_rule, region_summary, summary
from efficientad_jax.errors import InputError
from efficientad_jax.evaluation.split_maps import maps_of_split
from efficientad_jax.fitting.puad import fit_puad
from efficientad_jax.fitting.puad_summary import puad_summary
from efficientad_jax.known_defects.comparison import Comparison, with_candidate


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
        help="normal images to choose the pixel threshold by, or to compare with the defects "
        "(default: the validation images)",
    )
    add("--defects", metavar="FOLDER", type=Path, help="images of known defects, 8 or more")
    add("--apply", action="store_true", help="save the suggested way to compute scores")
    add(
        "--puad",
        choices=["on", "off"],
        help="whether the score has PUAD; where the detector has no statistics of it, they are "
        "fitted to the training images",
    )


def run(options: argparse.Namespace) -> int:
    """Chooses the thresholds and saves them, and reports on defects."""
    rate, region_rate = options.false_alarm_rate, options.region_false_positive_rate
    defects = None if options.defects is None else list_defects(options.defects)
    if rate is None and region_rate is None and defects is None and options.puad is None:
        raise InputError(
            "--false-alarm-rate, --region-false-positive-rate, --defects, --puad: none is given, "
            "expected one of them; see efficientad set-threshold --help"
        )
    _check_flags(options)
    folder = Path(options.detector)
    detector = Detector.load(folder)
    if options.puad is not None:
        detector = _with_puad(detector, options.puad == "on")
        detector.save(folder)
        print(f"PUAD {puad_summary(detector)}")
    if rate is not None:
        detector = detector.with_threshold(rate)
    if region_rate is not None:
        detector = _with_region_rule(detector, region_rate, options.smallest_region, options.images)
    if rate is not None or region_rate is not None:
        detector.save_record(folder)
    if rate is not None and detector.threshold is not None:
        print(f"threshold {summary(detector.threshold)}")
    if region_rate is not None and detector.region_rule is not None:
        print(f"pixel threshold {region_summary(detector.region_rule)}")
    if defects is not None:
        better = report_on_defects(detector, defects, options.images)
        if better is not None and options.apply:
            _apply(detector, better, folder, images=options.images)
    return 0


def _check_flags(options: argparse.Namespace) -> None:
    """Refuses flags that another one needs.

    Raises:
      InputError: there is such a flag.
    """
    is_of_regions = options.region_false_positive_rate is not None
    if options.smallest_region and not is_of_regions:
        raise InputError(
            "--smallest-region: is of regions, expected --region-false-positive-rate with it"
        )
    if options.images and not is_of_regions and options.defects is None:
        raise InputError(
            "--images: is of regions and defects, expected --region-false-positive-rate or "
            "--defects with it"
        )
    if options.apply and options.defects is None:
        raise InputError("--apply: is of a suggestion, expected --defects with it")


def _apply(detector: Detector, better: Comparison, folder: Path, *, images: str) -> None:
    """Saves the detector with another way to compute scores, and the thresholds for its rates.

    Other weights of the maps change the combined map, and the pixel threshold with it.
    """
    applied, rule = with_candidate(detector, better), detector.region_rule
    if rule is not None and better.candidate.local_weight != 0.5:
        maps, rate = _maps(applied, images), rule.threshold.false_alarm_rate
        applied = replace(applied, region_rule=choose_region_rule(maps, rate, rule.smallest_area))
    applied.save_record(folder)
    if applied.threshold is not None:
        print(f"threshold {summary(applied.threshold)}")


def _with_puad(detector: Detector, used: bool) -> Detector:
    """The detector with or without PUAD; looks at images only for statistics that are missing."""
    if detector.puad is None and used:
        dataset = load_configured_dataset(read_config(detector.config), detector.framing)
        return fit_puad(detector, dataset)
    return detector.with_puad(used)


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

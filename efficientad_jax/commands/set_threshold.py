"""Chooses a detector's threshold for another false-alarm rate; nothing is trained.

    efficientad set-threshold DETECTOR --false-alarm-rate=0.05
    efficientad set-threshold DETECTOR --defects=FOLDER
    efficientad set-threshold DETECTOR --defects=FOLDER --apply

The rate is the part of the normal images that may count as anomalous. The threshold is chosen by
the scores of the validation images, which the detector holds, and is saved in the detector.
--defects shows how many known defects are found at this and other thresholds. It compares a few
ways to compute scores, and suggests one if the defects are enough to tell; --apply saves it.
"""

import argparse
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from efficientad_jax.commands.command_line import add_detector
from efficientad_jax.config import read_config
from efficientad_jax.data.examples import GOOD
from efficientad_jax.data.files import list_images
from efficientad_jax.data.loading import load_configured_dataset, load_images
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.threshold import percent, summary
from efficientad_jax.errors import InputError
from efficientad_jax.evaluation.known_defects import (
    FEWEST,
    Comparison,
    compare,
    comparison_lines,
    recall_lines,
    recalls,
    rule_name,
    suggestion,
    with_candidate,
)

# At which defects are counted for a detector without a threshold.
_RATE = 0.01


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the arguments."""
    add_detector(parser)
    add = parser.add_argument
    add("--false-alarm-rate", metavar="RATE", type=float, help="in (0, 1)")
    add("--defects", metavar="FOLDER", type=Path, help="images of known defects, 8 or more")
    add(
        "--good-images",
        metavar="FOLDER",
        type=Path,
        help="good images to compare with the defects that the detector was not trained on "
        "(default: the validation images)",
    )
    add("--apply", action="store_true", help="save the suggested way to compute scores")


def run(options: argparse.Namespace) -> int:
    """Chooses the threshold and saves it, or reports on defects."""
    if options.false_alarm_rate is None and options.defects is None:
        raise InputError(
            "--false-alarm-rate: expected it, or --defects; see efficientad set-threshold --help"
        )
    for flag in ("good_images", "apply"):
        if getattr(options, flag) and options.defects is None:
            raise InputError(f"--{flag.replace('_', '-')}: is used with --defects only")
    defects = [] if options.defects is None else _defects(options.defects)
    folder = Path(options.detector)
    detector = Detector.load(folder)
    if options.false_alarm_rate is not None:
        detector = detector.with_threshold(options.false_alarm_rate)
        assert detector.threshold is not None
        detector.save_record(folder)
        print(f"threshold {summary(detector.threshold)}")
    if defects:
        size, white_level = detector.spec.input_size, detector.white_level
        _report_on_defects(
            detector, folder, load_images(defects, size, white_level=white_level), options=options
        )
    return 0


def _report_on_defects(
    detector: Detector,
    folder: Path,
    defects: UInt8[np.ndarray, "n h w 3"],
    *,
    options: argparse.Namespace,
) -> None:
    """Prints how many defects are found, and a suggestion; saves it if that is asked for.

    Args:
      detector: that was loaded from the folder.
      folder: of the detector.
      defects: at the detector's input size.
      options: of the command.
    """
    scores = np.array([detection.score for detection in detector.detect_resized(defects)])
    print(f"{len(defects)} defects, {len(detector.validation_scores)} validation images")
    for line in recall_lines(recalls(detector, scores), len(defects)):
        print(line)
    good = _good_images(detector, options.good_images)
    threshold = detector.threshold
    rate = _RATE if threshold is None else threshold.false_alarm_rate
    comparisons = compare(detector, good, defects, false_alarm_rate=rate)
    print(f"compared with {len(good)} good images, found at {percent(rate)} false alarms:")
    for line in comparison_lines(comparisons, len(defects)):
        print(line)
    if min(len(defects), len(good)) < FEWEST:
        print(f"suggestion: none, expected at least {FEWEST} defects and {FEWEST} good images")
        return
    better = suggestion(comparisons)
    if better is None:
        print("suggestion: keep the present score; these images are too few to tell another better")
        return
    print(f"suggestion: {_in_words(better)}")
    if options.apply:
        applied = with_candidate(detector, better)
        applied.save_record(folder)
        if applied.threshold is not None:
            print(f"threshold {summary(applied.threshold)}")


def _in_words(comparison: Comparison) -> str:
    candidate = comparison.candidate
    weights = ""
    if candidate.local_weight != 0.5:
        weights = f", local map with {percent(candidate.local_weight)} of the weight"
    return (
        f"score {rule_name(candidate.score_values)}{weights}; its AU-ROC is higher by "
        f"{comparison.low:.3f} to {comparison.high:.3f} (--apply saves it)"
    )


def _defects(folder: Path) -> list[Path]:
    """The images of defects.

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


def _good_images(detector: Detector, folder: Path | None) -> UInt8[np.ndarray, "n h w 3"]:
    """The good images of a folder, or the validation images of the training.

    Raises:
      InputError: they cannot be loaded.
    """
    if folder is not None:
        size = detector.spec.input_size
        return load_images(list_images(folder), size, white_level=detector.white_level)
    try:
        return load_configured_dataset(read_config(detector.config)).validation.images
    except InputError as error:
        raise InputError(
            f"{error}; to compare scores, give good images as --good-images=FOLDER"
        ) from error

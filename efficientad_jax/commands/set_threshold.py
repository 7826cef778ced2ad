"""Chooses a detector's threshold for another false-alarm rate; nothing is trained.

    efficientad set-threshold DETECTOR --false-alarm-rate=0.05

The rate is the part of the normal images that may count as anomalous. The threshold is chosen by
the scores of the validation images, which the detector holds, and is saved in the detector.
"""

import argparse
from pathlib import Path

from efficientad_jax.commands.command_line import add_detector
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.threshold import summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the arguments."""
    add_detector(parser)
    parser.add_argument(
        "--false-alarm-rate", metavar="RATE", required=True, type=float, help="in (0, 1)"
    )


def run(options: argparse.Namespace) -> int:
    """Chooses the threshold and saves it."""
    folder = Path(options.detector)
    detector = Detector.load(folder).with_threshold(options.false_alarm_rate)
    assert detector.threshold is not None
    detector.save_record(folder)
    print(f"threshold {summary(detector.threshold)}")
    return 0

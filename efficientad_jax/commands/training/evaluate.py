"""Evaluates a detector on test images.

    efficientad evaluate runs/mine/detector FOLDER
    efficientad evaluate runs/mine/detector

FOLDER is laid out as for the training; without it the images are those of the training's folder.
Prints the metrics next to those of three baselines, writes metrics.json and report.html into the
detector's work directory, or into --output, and adds the metrics to the detector.
"""

import argparse
from pathlib import Path

from efficientad_jax.commands.command_line import add_detector
from efficientad_jax.errors import InputError
from efficientad_jax.runs.workdir import Workdir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the arguments."""
    add_detector(parser)
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        default="",
        help="the images (default: where they were at the training)",
    )
    parser.add_argument(
        "--ignore-masks",
        metavar="FOLDER",
        default="",
        help="the ignore masks of the images, for a detector that was trained with one for each "
        "(default: where they were at the training)",
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        type=Path,
        help="folder for metrics.json and report.html (default: the work directory)",
    )


def run(options: argparse.Namespace) -> int:
    """Evaluates the detector."""
    # It takes long to import, as it draws and computes all metrics.
    from efficientad_jax.evaluation.evaluate_run import evaluate_saved, evaluation_summary

    folder = Path(options.detector)
    output = options.output or _workdir_of(folder)
    evaluation = evaluate_saved(
        folder, output, root=options.folder, ignore_masks=options.ignore_masks
    )
    print(evaluation_summary(evaluation))
    return 0


def _workdir_of(detector: Path) -> Path:
    """The work directory that a detector lies in.

    Raises:
      InputError: it lies in none.
    """
    workdir = detector.absolute().parent
    if detector.is_dir() and not Workdir(workdir).config.is_file():
        raise InputError(
            f"detector {detector}: lies in no work directory of a training; give a folder for the "
            "results as --output"
        )
    return workdir

"""Trains a detector on a folder of images of good parts.

    efficientad train FOLDER --workdir=runs/mine
    efficientad train FOLDER --workdir=runs/mine --minutes=15
    efficientad train FOLDER --workdir=runs/mine --config.train.steps=20000

The folder holds good images, or is laid out as MVTec AD: train/good, test/good, test/DEFECT and
ground_truth/DEFECT. The detector is left in the folder `detector` of the work directory. Ctrl-C
saves the state, and the same command resumes. Every field of the configuration is a flag
--config.FIELD=VALUE: docs/recipes.md says which ones are worth changing.
"""

import argparse
from pathlib import Path

from efficientad_jax.commands.command_line import print_line
from efficientad_jax.commands.training.config_flags import add_fields, given_fields
from efficientad_jax.runs.workdir import Workdir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the arguments."""
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="the images")
    add(
        "--workdir",
        metavar="FOLDER",
        required=True,
        help="folder for checkpoints, losses and the detector; or an address such as gs://...",
    )
    add(
        "--recipe",
        default="folder",
        help="'folder' for a quarter of an hour on a CPU, 'thorough' for an hour, 'paper' for the "
        "paper's constants and an accelerator (default: %(default)s)",
    )
    add(
        "--minutes",
        default=0.0,
        type=float,
        help="time for the training steps, in place of the recipe's number of steps",
    )
    add(
        "--mlflow",
        metavar="URI",
        default="",
        help="MLflow server to track the training in, such as http://localhost:5000 or "
        "sqlite:///mlflow.db",
    )
    add_fields(parser)


def run(options: argparse.Namespace) -> int:
    """Trains, or resumes an earlier run of the same work directory."""
    # Only here: the other commands start without the code of a training.
    from efficientad_jax.fitting.puad_summary import puad_summary
    from efficientad_jax.fitting.train_detector import train_detector

    detector = train_detector(
        options.folder,
        options.workdir,
        options.recipe,
        minutes=options.minutes,
        fields=given_fields(options),
        mlflow=options.mlflow,
    )
    if detector.puad is not None:
        print_line(f"PUAD {puad_summary(detector)}")
    print_line(f"detector: {options.workdir.rstrip('/')}/{Workdir(Path()).detector.name}")
    return 0

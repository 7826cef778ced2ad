"""Evaluates exported detectors on the test images of the dataset the detector was trained on.

    efficientad evaluate-exported DETECTOR detector.onnx detector_int8.onnx

Prints the image AU-ROC of the detector itself and then that of each file.
"""

import argparse
from pathlib import Path

from efficientad_jax.commands.command_line import add_detector
from efficientad_jax.config import read_config
from efficientad_jax.data.loading import load_configured_dataset
from efficientad_jax.detection.detector import Detector
from efficientad_jax.errors import InputError
from efficientad_jax.evaluation.metrics import evaluate
from efficientad_jax.export.programs import Program, detector_program, open_program, run_in_batches


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the arguments."""
    add_detector(parser)
    parser.add_argument("files", metavar="FILE", nargs="+", help="an exported detector")


def run(options: argparse.Namespace) -> int:
    """Evaluates the detector and the files."""
    detector = Detector.load(options.detector)
    programs: dict[str, Program] = {options.detector: detector_program(detector)}
    programs |= {name: open_program(Path(name)) for name in options.files}
    test = load_configured_dataset(read_config(detector.config)).test
    if not test.names:
        raise InputError(f"detector {options.detector}: its dataset has no test images")
    for name, program in programs.items():
        metrics = evaluate(run_in_batches(program, test.images)["scores"], test.labels)
        if metrics.image_auroc is None:
            raise InputError(f"image AU-ROC: not defined, {metrics.image_reason}")
        print(f"image AU-ROC {metrics.image_auroc:.4f}  {name}", flush=True)
    return 0

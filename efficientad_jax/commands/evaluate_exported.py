"""Evaluates exported detectors on the test images of the dataset the detector was trained on.

    efficientad evaluate-exported DETECTOR detector.onnx detector_int8.onnx

Prints the image AU-ROC of the detector itself and then that of each file, and how many images count
as anomalous by the threshold that the file holds.
"""

import argparse
import logging
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from efficientad_jax.commands.command_line import add_detector
from efficientad_jax.config import read_config
from efficientad_jax.data.framing_file import has_own_masks
from efficientad_jax.data.loading import load_configured_dataset
from efficientad_jax.detection.detector import Detector
from efficientad_jax.errors import InputError
from efficientad_jax.evaluation.metrics import evaluate
from efficientad_jax.export.programs import Program, detector_program, open_program, run_in_batches

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the arguments."""
    add_detector(parser)
    parser.add_argument("files", metavar="FILE", nargs="+", help="an exported detector")


def run(options: argparse.Namespace) -> int:
    """Evaluates the detector and the files."""
    detector = Detector.load(options.detector)
    if detector.framing.fit == "tile":
        raise InputError(
            f"detector {options.detector}: cuts images into tiles, expected one that resizes or "
            "pads them, as exported files take"
        )
    config = read_config(detector.config)
    if has_own_masks(config.dataset, detector.framing):
        raise InputError(
            f"detector {options.detector}: its images have an ignore mask each, expected none or "
            "one for all; exported files take no masks"
        )
    programs: dict[str, Program] = {options.detector: detector_program(detector)}
    programs |= {name: open_program(Path(name)) for name in options.files}
    test = load_configured_dataset(config, detector.framing).test
    if not test.names:
        raise InputError(f"detector {options.detector}: its dataset has no test images")
    exported_from = programs[options.detector].arrays_sha256
    for name, program in programs.items():
        if program.arrays_sha256 not in (None, exported_from):
            _log.warning("%s: was exported from another detector than %s", name, options.detector)
        scores = run_in_batches(program, test.images)["scores"]
        metrics = evaluate(scores, test.labels)
        if metrics.image_auroc is None:
            raise InputError(f"image AU-ROC: not defined, {metrics.image_reason}")
        verdicts = _verdicts(program.threshold, scores, test.labels)
        print(f"image AU-ROC {metrics.image_auroc:.4f}{verdicts}  {name}", flush=True)
    return 0


def _verdicts(
    threshold: float | None, scores: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
) -> str:
    """The part of a line that counts the verdicts, empty without a threshold."""
    if threshold is None:
        return ""
    alarmed, anomalous = scores >= threshold, labels == 1
    return (
        f"  threshold {threshold:.4g}: false alarms {(alarmed & ~anomalous).sum()} of "
        f"{(~anomalous).sum()}, found {(alarmed & anomalous).sum()} of {anomalous.sum()}"
    )

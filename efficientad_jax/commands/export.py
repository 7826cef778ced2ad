"""Writes a detector as one file that runs without this package.

    efficientad export DETECTOR --format=onnx --output=detector.onnx
    efficientad export DETECTOR --format=onnx --int8 --output=detector_int8.onnx
    efficientad export DETECTOR --format=stablehlo --output=detector.stablehlo

The file takes uint8 RGB images at the detector's input size and returns scores and anomaly maps.
Threshold, input size and normalization are in the metadata of an ONNX file, and next to a StableHLO
file in FILE.json. The 8-bit ranges and the thresholds of --int8 are measured on normal images: the
validation images of the dataset that the detector was trained on, or those of --calibration-images.
ONNX needs the extra `export` of the package.
"""

import argparse
from pathlib import Path

from efficientad_jax.commands.command_line import add_detector
from efficientad_jax.detection.detector import Detector
from efficientad_jax.errors import InputError
from efficientad_jax.export.properties import (
    export_properties,
    properties_file,
    write_properties,
)
from efficientad_jax.export.stablehlo import stablehlo_bytes
from efficientad_jax.storage.atomic import write_atomically


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the arguments."""
    add_detector(parser)
    add = parser.add_argument
    add("--format", required=True, choices=["onnx", "stablehlo"], help="format of the file")
    add("--output", metavar="FILE", required=True, type=Path, help="file to write")
    add("--int8", action="store_true", help="compute the convolutions in 8 bits, for onnx only")
    add(
        "--calibration-images",
        metavar="FOLDER",
        default="",
        help="normal images for --int8 (default: the validation images)",
    )


def run(options: argparse.Namespace) -> int:
    """Exports the detector."""
    if options.output.suffix != f".{options.format}":
        raise InputError(
            f"--output={options.output}: expected a name that ends in .{options.format}"
        )
    if options.int8 and options.format != "onnx":
        raise InputError(f"--int8 --format={options.format}: only onnx can be written in 8 bits")
    if options.calibration_images and not options.int8:
        raise InputError("--calibration-images: is used with --int8 only; add --int8 or remove it")
    detector = Detector.load(options.detector)
    is_stablehlo = options.format == "stablehlo"
    if is_stablehlo:
        content = stablehlo_bytes(detector)
    else:
        content = _onnx_bytes(detector, options.int8, options.calibration_images)
    write_atomically(options.output, content)
    print(f"{options.output}: {len(content) / 1e6:.1f} MB")
    if is_stablehlo:
        properties = export_properties(detector, detector.spec.dtype, detector.threshold)
        write_properties(options.output, content, properties)
        print(f"{properties_file(options.output)}: threshold, input size and others")
    return 0


def _onnx_bytes(detector: Detector, int8: bool, images_folder: str) -> bytes:
    try:
        from efficientad_jax.export.int8 import calibration_images, int8_model
        from efficientad_jax.export.onnx_model import onnx_model
    except ImportError as error:
        raise InputError(
            f"--format=onnx: needs {error.name}, which is not installed; "
            "run pip install 'efficientad-jax[export]'"
        ) from error
    if not int8:
        return onnx_model(detector).SerializeToString()
    images, sizes = calibration_images(detector, images_folder)
    return int8_model(detector, images, sizes).SerializeToString()

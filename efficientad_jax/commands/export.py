"""Writes a detector as one file that runs without this package.

    python -m experiments.export runs/mine/detector --format=onnx --output=mine.onnx
    python -m experiments.export runs/mine/detector --format=onnx --int8 --output=mine_int8.onnx
    python -m experiments.export runs/mine/detector --format=stablehlo --output=mine.stablehlo

The file takes uint8 RGB images at the detector's input size and gives scores and maps; see
docs/deployment.md. 8 bits are tuned on normal images: the validation images of the dataset that the
detector was trained on, or those of --calibration_images.
"""

from pathlib import Path

from absl import flags

from efficientad_jax.detection.detector import Detector
from efficientad_jax.errors import InputError
from efficientad_jax.export.stablehlo import stablehlo_bytes
from efficientad_jax.storage.atomic import write_atomically
from experiments import run

_FORMAT = flags.DEFINE_enum("format", None, ["onnx", "stablehlo"], "of the file", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "file to write", required=True)
_INT8 = flags.DEFINE_bool("int8", False, "whether convolutions are in 8 bits, for onnx")
_CALIBRATION_IMAGES = flags.DEFINE_string(
    "calibration_images", "", "folder of normal images for --int8, default: validation images"
)


def main(argv: list[str]) -> int:
    """Exports."""
    if len(argv) != 2:
        raise InputError(f"{len(argv) - 1} arguments: expected one, the detector's folder")
    output = Path(_OUTPUT.value)
    if output.suffix != f".{_FORMAT.value}":
        raise InputError(f"--output={output}: expected a name that ends in .{_FORMAT.value}")
    if _INT8.value and _FORMAT.value != "onnx":
        raise InputError(f"--int8 --format={_FORMAT.value}: only onnx can be had in 8 bits")
    if _CALIBRATION_IMAGES.value and not _INT8.value:
        raise InputError("--calibration_images: of use with --int8 alone; give it, or leave both")
    detector = Detector.load(argv[1])
    content = stablehlo_bytes(detector) if _FORMAT.value == "stablehlo" else _onnx(detector)
    write_atomically(output, content)
    print(f"{output}: {len(content) / 1e6:.1f} MB")
    return 0


def _onnx(detector: Detector) -> bytes:
    try:
        from efficientad_jax.export.int8 import calibration_images, int8_model
        from efficientad_jax.export.onnx_model import onnx_model
    except ImportError as error:
        raise InputError(
            f"--format=onnx: needs {error.name}, which is not installed; "
            "run pip install 'efficientad-jax[export]'"
        ) from error
    if not _INT8.value:
        return onnx_model(detector).SerializeToString()
    images = calibration_images(detector, _CALIBRATION_IMAGES.value)
    return int8_model(detector, images).SerializeToString()


if __name__ == "__main__":
    run(main)

"""Evaluates exported detectors on the test images of the dataset the detector was trained on.

    python -m experiments.evaluate_exported --detector=runs/mine/detector mine.onnx mine_int8.onnx

Prints the image AU-ROC of each file and, first, that of the detector itself.
"""

from pathlib import Path

from absl import flags

from efficientad_jax.config import read_config
from efficientad_jax.data.loading import load_configured_dataset
from efficientad_jax.detection.detector import Detector
from efficientad_jax.errors import InputError
from efficientad_jax.evaluation.metrics import evaluate
from efficientad_jax.export.programs import Program, detector_program, open_program, run_in_batches
from experiments import run

_DETECTOR = flags.DEFINE_string(
    "detector", None, "the folder that the files were exported from", required=True
)


def main(argv: list[str]) -> int:
    """Evaluates."""
    if len(argv) < 2:
        raise InputError("no files given: expected exported detectors as arguments")
    detector = Detector.load(_DETECTOR.value)
    programs: dict[str, Program] = {_DETECTOR.value: detector_program(detector)}
    programs |= {name: open_program(Path(name)) for name in argv[1:]}
    test = load_configured_dataset(read_config(detector.config)).test
    if not test.names:
        raise InputError(f"detector {_DETECTOR.value}: its dataset has no test images")
    for name, program in programs.items():
        found = evaluate(run_in_batches(program, test.images)["scores"], test.labels)
        if found.image_auroc is None:
            raise InputError(f"image AU-ROC: not defined, {found.image_reason}")
        print(f"image AU-ROC {found.image_auroc:.4f}  {name}", flush=True)
    return 0


if __name__ == "__main__":
    run(main)

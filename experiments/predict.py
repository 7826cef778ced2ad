"""Detects anomalies in images: a heat map beside each image, and a CSV file of scores.

    python -m experiments.predict --detector=runs/elpv_mono/detector IMAGE_OR_FOLDER...

`photo.jpg` gets `photo_heatmap.png` beside it, or in --output with the images' folders below it.
The column `anomalous` is 1 where the score reaches the detector's threshold, or the one for
--false_alarm_rate. With --tile images are not resized, but cut into tiles of the input's size.
An image that cannot be read is named; the others are done, and the exit status is 1.
"""

import sys
from pathlib import Path

from absl import flags

from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.heatmap import HIGH, LOW
from efficientad_jax.detection.predict_files import plan_pictures, predict_files
from efficientad_jax.detection.threshold import summary
from efficientad_jax.detection.tiling import chosen_overlap
from efficientad_jax.errors import InputError
from experiments import run

_DETECTOR = flags.DEFINE_string(
    "detector", None, "a folder that experiments.train left", required=True
)
_OUTPUT = flags.DEFINE_string("output", "", "folder for the pictures, default: beside the images")
_SCORES = flags.DEFINE_string("scores", "scores.csv", "CSV file to write, in --output if given")
_LOW = flags.DEFINE_float("low", LOW, "value of a map that gets the first colour")
_HIGH = flags.DEFINE_float("high", HIGH, "value of a map that gets the last colour")
_RATE = flags.DEFINE_float("false_alarm_rate", None, "wanted, default: the detector's own")
_TILE = flags.DEFINE_bool("tile", False, "cut images into tiles instead of resizing them")
_OVERLAP = flags.DEFINE_integer("overlap", None, "of tiles, in pixels")


def main(argv: list[str]) -> int:
    """Predicts."""
    if len(argv) < 2:
        raise InputError("no images given: expected files or folders as arguments")
    if not _LOW.value < _HIGH.value:
        raise InputError(f"--low={_LOW.value} --high={_HIGH.value}: expected low below high")
    if _OVERLAP.value is not None and not _TILE.value:
        raise InputError(f"--overlap={_OVERLAP.value}: is of tiles, expected --tile with it")
    detector = Detector.load(_DETECTOR.value)
    if _RATE.value is not None:
        detector = detector.with_threshold(_RATE.value)
    overlap = chosen_overlap(detector.spec, _OVERLAP.value) if _TILE.value else None
    output = Path(_OUTPUT.value) if _OUTPUT.value else None
    scores = (output or Path()) / _SCORES.value
    tasks, failed = plan_pictures([Path(argument) for argument in argv[1:]], output, _complain)
    unread = predict_files(
        detector,
        tasks,
        scores,
        low=_LOW.value,
        high=_HIGH.value,
        complain=_complain,
        overlap=overlap,
    )
    if detector.threshold is not None:
        rates = "; these rates are those of one tile" if _TILE.value else ""
        print(f"threshold {summary(detector.threshold)}{rates}")
    print(f"{len(tasks) - unread} images scored, {failed + unread} failed: {scores}")
    return 1 if failed + unread else 0


def _complain(line: str) -> None:
    print(f"error: {line}", file=sys.stderr)


if __name__ == "__main__":
    run(main)

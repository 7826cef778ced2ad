"""Detects anomalies in images: a heat map beside each image, and a CSV file of scores.

    python -m experiments.predict --detector=runs/elpv_mono/detector IMAGE_OR_FOLDER...

`photo.jpg` gets `photo_heatmap.png` beside it, or in --output with the images' folders below it.
An image that cannot be read is named; the others are done, and the exit status is 1.
"""

import csv
import io
import sys
from pathlib import Path

from absl import flags

from efficientad_jax.atomic_file import write_atomically
from efficientad_jax.data.decoding import decode_image
from efficientad_jax.data.files import list_images
from efficientad_jax.detector import Detector
from efficientad_jax.errors import InputError
from efficientad_jax.heatmap import save_picture
from experiments import run

_DETECTOR = flags.DEFINE_string(
    "detector", None, "a folder that experiments.train left", required=True
)
_OUTPUT = flags.DEFINE_string("output", "", "folder for the pictures, default: beside the images")
_SCORES = flags.DEFINE_string("scores", "scores.csv", "CSV file to write, in --output if given")
_LOW = flags.DEFINE_float("low", 0.05, "value of a map that gets the first colour")
_HIGH = flags.DEFINE_float("high", 0.25, "value of a map that gets the last colour")

_SUFFIX = "_heatmap.png"
_CHUNK = 32


def main(argv: list[str]) -> int:
    """Predicts."""
    if len(argv) < 2:
        raise InputError("no images given: expected files or folders as arguments")
    detector = Detector.load(_DETECTOR.value)
    images = _images([Path(argument) for argument in argv[1:]])
    output = Path(_OUTPUT.value) if _OUTPUT.value else None
    rows, failed = [], 0
    for start in range(0, len(images), _CHUNK):
        decoded = []
        for path, root in images[start : start + _CHUNK]:
            try:
                decoded.append((path, root, decode_image(path)))
            except InputError as error:
                print(f"error: {error}", file=sys.stderr)
                failed += 1
        detections = detector([image for _, _, image in decoded])
        assert isinstance(detections, list)
        for (path, root, image), detection in zip(decoded, detections, strict=True):
            picture = path.with_name(path.stem + _SUFFIX)
            if output is not None:
                picture = output / picture.relative_to(root)
            save_picture(picture, image, [detection.anomaly_map], _LOW.value, _HIGH.value)
            rows.append((str(path), f"{detection.score:.6g}", str(picture)))
    table = io.StringIO()
    csv.writer(table).writerows([("image", "score", "heatmap"), *rows])
    scores = (output or Path()) / _SCORES.value
    write_atomically(scores, table.getvalue().encode())
    print(f"{len(rows)} images scored, {failed} failed: {scores}")
    return 1 if failed else 0


def _images(arguments: list[Path]) -> list[tuple[Path, Path]]:
    """The image files named or found, each with the folder its output is placed relative to."""
    found = []
    for argument in arguments:
        if argument.is_dir():
            found += [(path, argument) for path in list_images(argument)]
        else:
            found.append((argument, argument.parent))
    return [(path, root) for path, root in found if not path.name.endswith(_SUFFIX)]


if __name__ == "__main__":
    run(main)

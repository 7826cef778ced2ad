"""Detection in image files: writes a heat map of each image and a table of all scores."""

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from efficientad_jax.data.decoding import decode_image
from efficientad_jax.data.files import list_images
from efficientad_jax.detection.detector import BATCH_SIZE, Detector
from efficientad_jax.detection.heatmap import PICTURE_SUFFIX, save_picture
from efficientad_jax.detection.threshold import is_anomalous
from efficientad_jax.detection.tiling import detect_tiled
from efficientad_jax.errors import InputError, stops_all_writing
from efficientad_jax.storage.atomic import write_atomically

# Pixels that are decoded at a time: a batch of images, or fewer if they are large.
_MOST_PIXELS = 1 << 25

Complain = Callable[[str], None]


class Task(NamedTuple):
    """An image and where its picture goes."""

    image: Path
    picture: Path


def plan_pictures(
    sources: Sequence[Path], output: Path | None, complain: Complain
) -> tuple[list[Task], int]:
    """The images named or found in folders, and where the picture of each goes.

    `photo.jpg` gets `photo_heatmap.png`; where two images of a folder have that name but for its
    ending, the second gets `photo.png_heatmap.png`.

    Args:
      sources: files and folders. Pictures of an earlier run are passed over.
      output: folder for the pictures, below it as the images are below the folders named; None
        for next to the images.
      complain: takes a line for each source that cannot be used.

    Returns:
      The tasks, and how many sources or images were complained of.
    """
    tasks: list[Task] = []
    taken: dict[Path, Path] = {}
    failed = 0
    for source in sources:
        try:
            is_folder = source.is_dir()
            images = list_images(source) if is_folder else [source]
        except (InputError, ValueError) as error:  # ValueError: a zero byte in the name
            complain(str(InputError(str(error))))
            failed += 1
            continue
        root = source if is_folder else source.parent
        for image in images:
            if image.name.endswith(PICTURE_SUFFIX):
                continue
            for stem in (image.stem, image.name):
                picture = image.with_name(stem + PICTURE_SUFFIX)
                if output is not None:
                    picture = output / picture.relative_to(root)
                if picture not in taken:
                    break
            if taken.setdefault(picture, image) != image:
                complain(
                    str(
                        InputError(
                            f"image {image}: its picture would replace {picture}, that of "
                            f"{taken[picture]}; give another --output for one of them"
                        )
                    )
                )
                failed += 1
                continue
            tasks.append(Task(image, picture))
    return tasks, failed


def predict_files(
    detector: Detector,
    tasks: Sequence[Task],
    scores: Path,
    *,
    low: float,
    high: float,
    complain: Complain,
    overlap: int | None = None,
) -> int:
    """Detects in images, writes their pictures and, at the end, a CSV file of scores.

    Args:
      detector: calibrated.
      tasks: of `plan_pictures`.
      scores: the CSV file; its columns are image, score, heatmap and anomalous: 1 or 0, or empty
        if the detector has no threshold.
      low: map value of the first color.
      high: map value of the last color.
      complain: is called with a line per image that cannot be read or whose picture cannot be
        written.
      overlap: of the tiles that images are cut into, in pixels (see `detect_tiled`); None resizes
        images to the detector's input instead.

    Returns:
      The number of images that were complained of.

    Raises:
      OSError: the scores cannot be written, or no picture can as the disk is full or read-only.
    """
    rows: list[tuple[str, str, str, str]] = []
    failed = 0

    def note(line: str) -> None:
        nonlocal failed
        failed += 1
        complain(line)

    for chunk in _decoded(tasks, note):
        images = [image for _, image in chunk]
        if overlap is None:
            detections = detector(images)
        else:
            detections = (detect_tiled(detector, image, overlap) for image in images)
        for (task, image), detection in zip(chunk, detections, strict=True):
            try:
                save_picture(task.picture, image, [detection.anomaly_map], low=low, high=high)
            except OSError as error:
                if stops_all_writing(error):
                    raise
                note(str(InputError(f"{task.picture}: {error.strerror}")))
                continue
            verdict = is_anomalous(detector.threshold, detection.score)
            anomalous = "" if verdict is None else str(int(verdict))
            rows.append((str(task.image), f"{detection.score:.6g}", str(task.picture), anomalous))
    table = io.StringIO()
    csv.writer(table).writerows([("image", "score", "heatmap", "anomalous"), *rows])
    # A name that is not UTF-8 keeps its bytes.
    write_atomically(scores, os.fsencode(table.getvalue()))
    return failed


def _decoded(
    tasks: Sequence[Task], complain: Complain
) -> Iterator[list[tuple[Task, UInt8[np.ndarray, "h w 3"]]]]:
    """The readable images, in chunks."""
    chunk, pixels = [], 0
    for task in tasks:
        try:
            image = decode_image(task.image)
        except InputError as error:
            complain(str(error))
            continue
        size = image.shape[0] * image.shape[1]
        if chunk and (len(chunk) == BATCH_SIZE or pixels + size > _MOST_PIXELS):
            yield chunk
            chunk, pixels = [], 0
        chunk.append((task, image))
        pixels += size
    if chunk:
        yield chunk

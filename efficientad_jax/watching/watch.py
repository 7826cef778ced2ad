"""Scores each image that arrives, writes the result to the journal and reports it."""

import os
from collections.abc import Callable, Generator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from efficientad_jax.data.decoding import ImageSource
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.heatmap import HIGH, LOW, PICTURE_SUFFIX, save_picture
from efficientad_jax.detection.threshold import WORDS, score_fields
from efficientad_jax.errors import InputError, printable, stops_all_writing
from efficientad_jax.monitoring.drift import DriftMonitor
from efficientad_jax.watching.address import public_name
from efficientad_jax.watching.arrivals import completed_files
from efficientad_jax.watching.camera import camera_frames
from efficientad_jax.watching.journal import append_line, read_arrivals

JOURNAL = "results.jsonl"
PICTURES = ("anomalous", "all", "none")

ReportLine = Callable[[str], None]


class _Input(NamedTuple):
    """An image to score.

    Attributes:
      name: for messages.
      source: file or pixels.
      picture: file for its heat map.
      origin: the fields of its journal entry that say where it comes from.
    """

    name: str
    source: ImageSource
    picture: Path
    origin: dict[str, Any]


class Options(NamedTuple):
    """How to watch.

    Attributes:
      every: seconds between two frames of a camera.
      settle: seconds for which a file has to stay unchanged to count as complete.
      pictures: the images for which heat maps are written: 'anomalous', 'all' or 'none'.
      polling: whether to poll a folder instead of relying on the operating system to report
        changes, as it does not for network folders.
    """

    every: float = 1.0
    settle: float = 1.0
    pictures: str = "anomalous"
    polling: bool = False


def watch(
    detector: Detector,
    source: str,
    output: Path,
    *,
    options: Options,
    stopped: Callable[[], bool],
    report: ReportLine,
    report_error: ReportLine,
) -> tuple[int, int]:
    """Scores images as they arrive, until it is stopped or a video file ends.

    `results.jsonl` in the output folder gets a line for each image. Files that have a line are
    skipped, also when the watch is started again. `monitoring/drift.py` watches scores and
    brightness.

    Args:
      detector: calibrated.
      source: a folder, or a camera as in `camera_frames`.
      output: folder for the results.
      options: how to watch.
      stopped: whether to end.
      report: is called with a line for each result, for drift, and with counts at the end.
      report_error: is called with a line for each image that cannot be used.

    Returns:
      The number of images that were scored, and of those that could not be used.

    Raises:
      InputError: the source cannot be opened, or the folder is removed.
      OSError: results cannot be written.
    """
    journal = output / JOURNAL
    inputs = _inputs(source, output, options, stopped=stopped, report_error=report_error)
    monitor = DriftMonitor(detector.validation_scores, detector.validation_brightness)
    scored = failed = 0
    for image in inputs:
        entry = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **image.origin}
        try:
            scores, brightness = _score(
                detector, image, options.pictures, report_error=report_error
            )
        except InputError as error:
            failed += 1
            report_error(str(error))
            append_line(journal, entry | {"error": str(error)})
            continue
        entry |= scores
        drift = monitor.add(entry["score"], entry["verdict"], brightness)
        append_line(journal, entry | {"drift": monitor.alarm})
        scored += 1
        report(printable(f"{image.name}  {entry['score']:.4g}  {WORDS[entry['verdict']]}"))
        for line in drift:
            report(line)
    if monitor.edges and scored:
        report(monitor.summary())
    return scored, failed


def _score(
    detector: Detector, image: _Input, pictures: str, *, report_error: ReportLine
) -> tuple[dict[str, Any], float]:
    """Scores an image and, if `pictures` asks for it, writes its heat map.

    Returns:
      Fields of the journal: score, verdict, threshold, regions (None for a detector without a pixel
      threshold) and, if it was written, the picture. Then the mean brightness of what the networks
      see, in [0, 255].

    Raises:
      InputError: the image cannot be used.
      OSError: the disk is full or read-only.
    """
    pixels = detector.decode(image.source, image.name)
    if detector.framing.fit == "tile":
        seen, detection = pixels, detector(pixels)
    else:
        seen = detector.network_input(pixels)
        (detection,) = detector.detect_resized(seen[None], [pixels.shape[:2]])
    result = score_fields(detector.threshold, detection.score)
    regions = () if detector.region_rule is None else detection.regions
    found = None if detector.region_rule is None else [region.as_dict() for region in regions]
    result["regions"] = found
    if pictures == "all" or (pictures == "anomalous" and result["verdict"]):
        try:
            boxes = [region.box for region in regions]
            save_picture(
                image.picture, pixels, [detection.anomaly_map], low=LOW, high=HIGH, boxes=boxes
            )
        except OSError as error:
            if stops_all_writing(error):
                raise
            report_error(printable(f"{image.picture}: {error.strerror}"))
        else:
            result["picture"] = str(image.picture)
    return result, float(seen.mean())


def _inputs(
    source: str,
    output: Path,
    options: Options,
    *,
    stopped: Callable[[], bool],
    report_error: ReportLine,
) -> Generator[_Input, None, None]:
    """The images of a source as they arrive. Arguments and errors are those of `watch`."""
    if os.path.isdir(source):
        return _folder_inputs(Path(source), output, options, stopped=stopped)
    if "://" in source or os.path.exists(source):
        return _camera_inputs(source, output, options, stopped=stopped, report_error=report_error)
    raise InputError(
        f"source {public_name(source)}: no such folder, device or file, expected one of these "
        "or an address such as rtsp://..."
    )


def _folder_inputs(
    folder: Path, output: Path, options: Options, *, stopped: Callable[[], bool]
) -> Generator[_Input, None, None]:
    folder = folder.absolute()  # Paths in the journal do not depend on the current directory.
    seen = read_arrivals(output / JOURNAL)
    for arrival in completed_files(
        folder, options.settle, seen, stopped=stopped, polling=options.polling
    ):
        inside = arrival.path.relative_to(folder)
        picture = output / inside.with_name(inside.name + PICTURE_SUFFIX)
        origin = {
            "image": str(arrival.path),
            "modified_ns": arrival.modified_ns,
            "bytes": arrival.size,
        }
        yield _Input(str(inside), arrival.path, picture, origin)


def _camera_inputs(
    source: str,
    output: Path,
    options: Options,
    *,
    stopped: Callable[[], bool],
    report_error: ReportLine,
) -> Generator[_Input, None, None]:
    start = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    frames = camera_frames(source, options.every, stopped, report_error=report_error)
    with closing(frames):
        for number, frame in enumerate(frames):
            picture = output / f"{start}_{number:06}{PICTURE_SUFFIX}"
            origin = {"source": public_name(source), "frame": number, "seconds": frame.seconds}
            yield _Input(f"frame {number} at {frame.seconds:.2f} s", frame.image, picture, origin)

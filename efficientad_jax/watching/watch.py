"""Each image that comes is scored, written down and told."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from efficientad_jax.data.decoding import ImageSource, decode_image
from efficientad_jax.detection.detector import Detection, Detector
from efficientad_jax.detection.heatmap import HIGH, LOW, PICTURE_SUFFIX, save_picture
from efficientad_jax.detection.threshold import WORDS, score_fields
from efficientad_jax.errors import InputError, printable, stops_all_writing
from efficientad_jax.watching.arrivals import completed_files
from efficientad_jax.watching.camera import camera_frames, public_name
from efficientad_jax.watching.journal import append_line, read_arrivals

JOURNAL = "results.jsonl"
PICTURES = ("anomalous", "all", "none")

Tell = Callable[[str], None]


class _Shot(NamedTuple):
    """An image, what to call it, where its picture goes, and what the journal says of it."""

    name: str
    source: ImageSource
    picture: Path
    record: dict[str, Any]


class Options(NamedTuple):
    """How to watch.

    Attributes:
      every: seconds from one frame of a camera to the next.
      settle: seconds for which a file has to stay as it is to count as complete.
      pictures: of which images heat maps are written: 'anomalous', 'all' or 'none'.
      polling: whether to look for changes of a folder instead of being told of them.
    """

    every: float = 1.0
    settle: float = 1.0
    pictures: str = "anomalous"
    polling: bool = False


def watch(
    detector: Detector,
    source: str,
    output: Path,
    options: Options,
    stopped: Callable[[], bool],
    say: Tell,
    complain: Tell,
) -> tuple[int, int]:
    """Scores images as they come, until it is stopped; a video file ends by itself.

    `results.jsonl` in the output folder gets a line for each image when it is done. Files that
    have a line are passed over, also after a new start.

    Args:
      detector: calibrated.
      source: a folder, or a camera as in `camera_frames`.
      output: folder for the results.
      options: how to watch.
      stopped: whether to end.
      say: takes a line for each result.
      complain: takes a line for each image that cannot be used.

    Returns:
      How many images were scored, and how many were complained of.

    Raises:
      InputError: the source cannot be opened, or a folder is gone.
      OSError: results cannot be written.
    """
    journal = output / JOURNAL
    if Path(source).is_dir():
        shots = _of_folder(Path(source), output, options, stopped)
    elif "://" in source or Path(source).exists():
        shots = _of_camera(source, output, options, stopped, complain)
    else:
        raise InputError(
            f"source {source!r}: no such folder, device or file, and no address such as rtsp://..."
        )
    scored = failed = 0
    for shot in shots:
        record = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **shot.record}
        try:
            record |= _result(detector, shot, options.pictures, complain)
        except InputError as error:
            failed += 1
            complain(str(error))
            append_line(journal, record | {"error": str(error)})
            continue
        append_line(journal, record)
        scored += 1
        say(printable(f"{shot.name}  {record['score']:.4g}  {WORDS[record['verdict']]}"))
    return scored, failed


def _result(detector: Detector, shot: _Shot, pictures: str, complain: Tell) -> dict[str, Any]:
    """Score, verdict and, where one is wished, picture of an image.

    Raises:
      InputError: the image cannot be used.
      OSError: no picture can be written.
    """
    image = decode_image(shot.source, shot.name)
    detection = detector(image)
    assert isinstance(detection, Detection)
    result = score_fields(detector.threshold, detection.score)
    if pictures == "all" or (pictures == "anomalous" and result["verdict"]):
        try:
            save_picture(shot.picture, image, [detection.anomaly_map], LOW, HIGH)
        except OSError as error:
            if stops_all_writing(error):
                raise
            complain(printable(f"{shot.picture}: {error.strerror}"))
        else:
            result["picture"] = str(shot.picture)
    return result


def _of_folder(
    folder: Path, output: Path, options: Options, stopped: Callable[[], bool]
) -> Iterator[_Shot]:
    folder = folder.absolute()  # The journal knows files wherever the next start is from.
    seen = read_arrivals(output / JOURNAL)
    for arrival in completed_files(folder, options.settle, seen, stopped, options.polling):
        inside = arrival.path.relative_to(folder)
        picture = output / inside.with_name(inside.name + PICTURE_SUFFIX)
        record = {
            "image": str(arrival.path),
            "modified_ns": arrival.modified_ns,
            "bytes": arrival.size,
        }
        yield _Shot(str(inside), arrival.path, picture, record)


def _of_camera(
    source: str, output: Path, options: Options, stopped: Callable[[], bool], complain: Tell
) -> Iterator[_Shot]:
    start = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    for number, frame in enumerate(camera_frames(source, options.every, stopped, complain)):
        picture = output / f"{start}_{number:06}{PICTURE_SUFFIX}"
        record = {"source": public_name(source), "frame": number, "seconds": frame.seconds}
        yield _Shot(f"frame {number} at {frame.seconds:.2f} s", frame.image, picture, record)

"""Frames of a camera, a stream or a video file, one every so many seconds."""

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from jaxtyping import UInt8

from efficientad_jax.errors import InputError

# Between attempts to open a camera again that was lost.
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0
_PIECE = 0.25


class Frame(NamedTuple):
    """One picture.

    Attributes:
      seconds: since the first one taken; of a video file in its own time.
      image: RGB.
    """

    seconds: float
    image: UInt8[np.ndarray, "h w 3"]


def public_name(source: str) -> str:
    """The source without user name and password, to be printed and stored."""
    if "://" not in source:
        return source
    parts = urlsplit(source)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))


def camera_frames(
    source: str,
    every: float,
    stopped: Callable[[], bool],
    complain: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Frame]:
    """Frames of a source, until it is stopped or, for a video file, at its end.

    All frames are read, so that what is taken is what the camera sees now. One that is lost is
    opened again, after 1 second and then after twice as many each time, up to 30.

    Args:
      source: an address (`rtsp://...`), a device (`/dev/video0`) or the path of a video file.
      every: seconds from one frame taken to the next, 0 for all.
      stopped: whether to end.
      complain: takes a line when the camera is lost.
      sleep: waits for seconds.

    Raises:
      InputError: OpenCV is not installed, or the source cannot be opened.
    """
    cv2 = _opencv()
    name = public_name(source)
    is_file = Path(source).is_file()
    capture = _opened(cv2, source)
    if capture is None:
        raise InputError(
            f"source {name}: OpenCV cannot open it, expected a camera's device, the address of a "
            "stream or a video file"
        )
    start = due = 0.0
    taken = 0
    wait = _FIRST_WAIT
    try:
        while not stopped():
            if capture is None or not capture.grab():
                if is_file:
                    return
                if capture is not None:
                    capture.release()
                    complain(f"source {name}: no more frames, opening it again")
                _pause(wait, stopped, sleep)
                wait = min(2 * wait, _LONGEST_WAIT)
                capture = _opened(cv2, source)
                continue
            now = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 if is_file else time.monotonic()
            if taken and now < due:
                continue
            fine, pixels = capture.retrieve()
            if not fine:
                continue
            wait = _FIRST_WAIT
            start = start if taken else now
            due = now + every
            taken += 1
            yield Frame(now - start, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
    finally:
        if capture is not None:
            capture.release()


def _pause(seconds: float, stopped: Callable[[], bool], sleep: Callable[[float], None]) -> None:
    """Sleeps in short pieces: Python goes on with a sleep that a signal disturbed."""
    for _ in range(math.ceil(seconds / _PIECE)):
        if not stopped():
            sleep(_PIECE)


def _opencv() -> ModuleType:
    # What OpenCV and FFmpeg print of a source that cannot be opened says less than our line.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            "a camera needs OpenCV: pip install 'efficientad-jax[watch]' brings it "
            f"({error.name or error})"
        ) from error
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


def _opened(cv2: ModuleType, source: str) -> Any:
    """A `cv2.VideoCapture`, None if the source cannot be opened."""
    capture = cv2.VideoCapture(source)
    if capture.isOpened():
        return capture
    capture.release()
    return None

"""Reads frames of a camera, a stream or a video file at regular intervals."""

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

# Seconds between attempts to reopen a camera after its connection was lost.
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0
_SLEEP_SECONDS = 0.25


class Frame(NamedTuple):
    """A frame.

    Attributes:
      seconds: time since the first frame; for a video file, the time in the video.
      image: RGB.
    """

    seconds: float
    image: UInt8[np.ndarray, "h w 3"]


def public_name(source: str) -> str:
    """The source without user name, password and query, which may be printed and stored."""
    if "://" not in source:
        return source
    parts = urlsplit(source)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))


def camera_frames(
    source: str,
    every: float,
    stopped: Callable[[], bool],
    *,
    report_error: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Frame]:
    """Yields frames of a source, until it is stopped or, for a video file, until its end.

    The frames in between are read and dropped, so that each yielded frame is a current one. After a
    lost connection the source is reopened: after 1 second, then after twice the time at each
    further attempt, at most 30 seconds.

    Args:
      source: an address (`rtsp://...`), a device (`/dev/video0`) or the path of a video file.
      every: seconds between two yielded frames, 0 for all frames.
      stopped: whether to end.
      report_error: is called with a line when the connection is lost.
      sleep: waits for some seconds.

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
            "stream or a video file; check that it exists and is readable"
        )
    start = due = 0.0
    count = 0
    wait = _FIRST_WAIT
    try:
        while not stopped():
            if capture is None or not capture.grab():
                if is_file:
                    return
                if capture is not None:
                    capture.release()
                    report_error(f"source {name}: no more frames, opening it again")
                _pause(wait, stopped, sleep)
                wait = min(2 * wait, _LONGEST_WAIT)
                capture = _opened(cv2, source)
                continue
            now = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 if is_file else time.monotonic()
            if count and now < due:
                continue
            success, pixels = capture.retrieve()
            if not success:
                continue
            wait = _FIRST_WAIT
            start = start if count else now
            due = now + every
            count += 1
            yield Frame(now - start, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
    finally:
        if capture is not None:
            capture.release()


def _pause(seconds: float, stopped: Callable[[], bool], sleep: Callable[[float], None]) -> None:
    """Sleeps in short intervals, because Python resumes a sleep that a signal interrupts."""
    for _ in range(math.ceil(seconds / _SLEEP_SECONDS)):
        if not stopped():
            sleep(_SLEEP_SECONDS)


def _opencv() -> ModuleType:
    # The messages of OpenCV and FFmpeg about a bad source are less clear than the InputError.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            f"a camera needs OpenCV, which is not installed ({error.name or error}): "
            "pip install 'efficientad-jax[watch]'"
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

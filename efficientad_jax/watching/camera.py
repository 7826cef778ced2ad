"""Reads frames of a camera, a stream or a video file at regular intervals."""

import math
import os
import time
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from efficientad_jax.errors import InputError
from efficientad_jax.watching.address import public_name
from efficientad_jax.watching.newest import NewFrame, newest_frames


class Frame(NamedTuple):
    """A frame.

    Attributes:
      seconds: time since the first frame; for a video file, the time in the video.
      image: RGB.
    """

    seconds: float
    image: UInt8[np.ndarray, "h w 3"]


def camera_frames(
    source: str,
    every: float,
    stopped: Callable[[], bool],
    *,
    report_error: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Generator[Frame, None, None]:
    """Yields frames of a source, until it is stopped or, for a video file, until its end.

    A video file is read completely; its frames are as far apart as `every` says, however long the
    caller takes for each. A camera or stream is read in a thread (see `newest`): the frames that
    arrive before the next one is due are dropped, and one that is yielded has just arrived. After a
    lost connection the source is reopened: after 1 second, then after twice the time at each
    further attempt, at most 30 seconds.

    Args:
      source: an address (`rtsp://...`), a device (`/dev/video0`) or the path of a video file.
      every: seconds between two yielded frames, 0 for all frames of a video file and for the newest
        of a camera.
      stopped: whether to end.
      report_error: is called with a line when the connection is lost, from the reading thread.
      sleep: waits for some seconds.

    Raises:
      InputError: OpenCV is not installed, or the source cannot be opened.
    """
    cv2 = _opencv()
    capture = _open(cv2, source)
    if os.path.isfile(source):
        frames = _file_frames(cv2, capture, every, stopped=stopped)
    else:
        lost = f"source {public_name(source)}: no more frames, opening it again"
        frames = newest_frames(
            capture,
            every,
            stopped,
            reopen=partial(_try_to_open, cv2, source),
            report_loss=partial(report_error, lost),
            sleep=sleep,
        )
    start = None
    with closing(frames):
        for seconds, pixels in frames:
            start = seconds if start is None else start
            yield Frame(seconds - start, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))


def _file_frames(
    cv2: ModuleType, capture: Any, every: float, *, stopped: Callable[[], bool]
) -> Generator[NewFrame, None, None]:
    """Yields the frames of a video file that are due, with their time in the video."""
    due = -math.inf
    try:
        while not stopped() and capture.grab():
            now = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if now < due:
                continue
            success, pixels = capture.retrieve()
            if success:
                due = now + every
                yield NewFrame(now, pixels)
    finally:
        capture.release()


def _opencv() -> ModuleType:
    # OpenCV and FFmpeg print addresses with their passwords. These variables are therefore also set
    # where the user has set them. -8 is FFmpeg's level for no messages.
    os.environ |= {"OPENCV_FFMPEG_LOGLEVEL": "-8", "OPENCV_DUMP_ERRORS": "0"}
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            f"a camera needs OpenCV, which is not installed ({error.name or error}): "
            "pip install 'efficientad-jax[watch]'"
        ) from error
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


def _open(cv2: ModuleType, source: str) -> Any:
    """A `cv2.VideoCapture`.

    Raises:
      InputError: the source cannot be opened.
    """
    capture = _try_to_open(cv2, source)
    if capture is None:
        encode = "; in its user name and password, write @ / ? # as %40 %2F %3F %23"
        raise InputError(
            f"source {public_name(source)}: OpenCV cannot open it, expected a camera's device, the "
            "address of a stream or a video file; check that it exists and is readable"
            f"{encode if '://' in source else ''}"
        )
    return capture


def _try_to_open(cv2: ModuleType, source: str) -> Any:
    """A `cv2.VideoCapture`, None if the source cannot be opened."""
    try:
        source.encode()  # OpenCV crashes the process where this fails.
        capture = cv2.VideoCapture(source)
    except Exception:  # cv2.error and others, whose messages may contain the address
        return None
    if capture.isOpened():
        return capture
    capture.release()
    return None

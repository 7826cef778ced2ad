"""Frames of a camera are new when they are scored, and its thread ends with the watch."""

import threading
import time
from typing import ClassVar

import numpy as np
import pytest

from efficientad_jax.detection.detector import Detection, Detector
from efficientad_jax.watching import newest
from efficientad_jax.watching.camera import camera_frames
from efficientad_jax.watching.watch import Options, watch
from tests.helpers.detectors import random_detector

FRAMES_PER_SECOND = 25
SECONDS = 60


class Camera:
    """A camera whose frames wait until they are read; their gray level is their number."""

    opened: ClassVar[list["Camera"]] = []

    def __init__(self, source):
        self.start = time.monotonic()
        self.number = -1
        self.released = 0
        Camera.opened.append(self)

    def isOpened(self):  # noqa: N802
        return True

    def grab(self):
        self.number += 1
        time.sleep(max(0.0, self.taken_at(self.number) - time.monotonic()))
        return True

    def retrieve(self):
        return True, np.full((64, 64, 3), self.number, np.uint8)

    def taken_at(self, number):
        return self.start + number / FRAMES_PER_SECOND

    def release(self):
        self.released += 1


@pytest.fixture
def cv2(monkeypatch):
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV: pip install -e '.[watch]'")
    monkeypatch.setattr(Camera, "opened", [])
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    return cv2


def reader_threads():
    return [thread for thread in threading.enumerate() if thread.name == "camera"]


@pytest.mark.slow
def test_a_frame_is_no_older_than_one_detection_and_one_interval(cv2, tmp_path, monkeypatch):
    detection_seconds, every = 0.4, 0.2
    ages, durations, lines = [], [], []

    def slow(self, images, sizes):
        start = time.monotonic()
        time.sleep(detection_seconds)
        end = time.monotonic()
        (camera,) = Camera.opened
        ages.append(end - camera.taken_at(int(images[0, 0, 0, 0])))
        durations.append(end - start)
        blank = np.zeros(sizes[0], np.float32)
        return [Detection(0.0, blank, blank, None)]

    monkeypatch.setattr(Detector, "detect_resized", slow)
    watch(
        random_detector(),
        "rtsp://camera/stream",
        tmp_path,
        options=Options(every=every, pictures="none"),
        stopped=lambda: len(lines) >= 6,
        report=lines.append,
        report_error=pytest.fail,
    )
    assert len(ages) == 6
    for age, duration in zip(ages, durations, strict=True):
        assert age < duration + every, ages
    assert Camera.opened[0].released == 1
    assert not reader_threads()


def test_frames_of_a_camera_are_apart_by_the_interval(cv2):
    frames = camera_frames("rtsp://camera", 0.3, lambda: False, report_error=pytest.fail)
    seconds = [next(frames).seconds for _ in range(4)]
    frames.close()
    assert seconds[0] == 0.0
    assert (np.diff(seconds) >= 0.3).all()
    assert seconds[-1] < 3 * 0.3 + 1.0
    assert Camera.opened[0].released == 1
    assert not reader_threads()


def test_a_signal_ends_a_wait_for_the_next_frame(cv2):
    end = time.monotonic() + 1.0
    frames = camera_frames(
        "rtsp://camera", 1000.0, lambda: time.monotonic() > end, report_error=pytest.fail
    )
    assert len(list(frames)) == 1
    assert time.monotonic() < end + 5.0
    assert not reader_threads()


def test_a_camera_that_sends_nothing_does_not_block_the_end(cv2, monkeypatch):
    sent = threading.Event()
    monkeypatch.setattr(Camera, "grab", lambda self: sent.wait(SECONDS))
    monkeypatch.setattr(newest, "_SECONDS_TO_END", 0.1)
    end = time.monotonic() + 0.5
    frames = camera_frames(
        "rtsp://camera", 1.0, lambda: time.monotonic() > end, report_error=pytest.fail
    )
    assert list(frames) == []
    assert time.monotonic() < end + 5.0
    (thread,) = reader_threads()
    sent.set()
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert Camera.opened[0].released == 1


def test_an_error_of_the_thread_is_raised(cv2, monkeypatch):
    def fail(self):
        raise RuntimeError("no such pixels")

    monkeypatch.setattr(Camera, "retrieve", fail)
    frames = camera_frames("rtsp://camera", 1.0, lambda: False, report_error=pytest.fail)
    with pytest.raises(RuntimeError, match="no such pixels"):
        next(frames)
    assert Camera.opened[0].released == 1
    assert not reader_threads()

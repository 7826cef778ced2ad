"""Soak test: one process detects in many images; memory, compilations and speed must not change."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.inference import Calibration, DetectorParams, jitted_detect
from efficientad_jax.detection.map_normalization import MapQuantiles
from efficientad_jax.detection.spec import DetectorSpec, networks_of

MAX_GROWTH = 0.02
MIN_RELATIVE_SPEED = 0.8

_BATCH_SIZE = 8
_REPORT_INTERVAL = 1000


class SoakResult(NamedTuple):
    """The result of a soak test.

    Attributes:
      passed: whether all limits were met.
      summary: one line with the numbers.
    """

    passed: bool
    summary: str


def run_soak(
    detector: Detector,
    images: int,
    sizes: int,
    *,
    warm_up_images: int,
    report: Callable[[str], None],
) -> SoakResult:
    """Detects in images of noise.

    Args:
      detector: calibrated.
      images: number of images.
      sizes: number of different image sizes, each of 64 to 511 pixels.
      warm_up_images: number of images after which memory must not grow.
      report: is called with a line of progress every 1,000 images.
    """
    rng = np.random.default_rng(0)
    shapes = rng.integers(64, 512, (sizes, 2))
    noise = [rng.integers(0, 256, (height, width, 3), np.uint8) for height, width in shapes]
    memory: dict[int, int] = {}
    times: dict[int, float] = {0: time.monotonic()}
    compiled = 0
    jitted: Any = jitted_detect  # Its type does not declare the number of compiled programs.
    done = 0
    while done < images:
        detector([noise[(done + i) % sizes] for i in range(_BATCH_SIZE)])
        done += _BATCH_SIZE
        compiled = compiled or jitted._cache_size()
        if done % _REPORT_INTERVAL < _BATCH_SIZE or done >= images:
            memory[done], times[done] = _resident_bytes(), time.monotonic()
            speed = done / (times[done] - times[0])
            report(f"{done} images, {memory[done] / 1e6:.0f} MB, {speed:.1f} images/s")
    recompilations = jitted._cache_size() - compiled
    return judge_soak(memory, times, recompilations, warm_up_images=warm_up_images)


def judge_soak(
    memory: Mapping[int, int],
    times: Mapping[int, float],
    recompilations: int,
    *,
    warm_up_images: int,
) -> SoakResult:
    """Judges a soak test by its measurements.

    Args:
      memory: resident bytes by number of processed images.
      times: seconds by number of processed images, including 0; the zero point is arbitrary.
      recompilations: number of programs compiled after the first batch.
      warm_up_images: number of images after which memory must not grow.

    Returns:
      Passed if memory grew by at most `MAX_GROWTH` after the warm-up, nothing was recompiled, and
      the speed of the last quarter was at least `MIN_RELATIVE_SPEED` of the quarter before.
    """
    marks = sorted(memory)
    first = next((mark for mark in marks if mark >= warm_up_images), marks[0])
    growth = memory[marks[-1]] / memory[first] - 1
    quarters = np.interp(np.linspace(0, marks[-1], 5), [0, *marks], [times[m] for m in (0, *marks)])
    third, last = np.diff(quarters)[2:]
    speed = float(third / last)
    return SoakResult(
        growth <= MAX_GROWTH and not recompilations and speed >= MIN_RELATIVE_SPEED,
        f"memory grew by {100 * growth:.2f} % after {first} images, {recompilations} compilations "
        f"after the first batch, the last quarter ran at {100 * speed:.0f} % of the previous "
        "quarter's speed",
    )


def random_detector(side: int, channels: int) -> Detector:
    """A detector without autoencoder, with random parameters.

    Args:
      side: height and width of the networks' input in pixels.
      channels: of the teacher's features.
    """
    size = (side, side)
    spec = DetectorSpec("small", channels, size, False, "float32", autoencoder=False)
    teacher, student, _ = networks_of(spec)
    image = np.zeros((1, *size, 3), np.float32)
    keys = jax.random.split(jax.random.key(0))
    params = DetectorParams(teacher.init(keys[0], image), student.init(keys[1], image), None)
    calibration = Calibration(MapQuantiles(0.0, 1.0), None)
    return Detector(spec, params, calibration, {}, {})


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

"""Detects in many images of many sizes in one process: is anything lost on the way?

    python -m experiments.soak --detector=runs/elpv_mono/detector
    python -m experiments.soak --images=20000 --input=128 --channels=32

Without --detector one of random parameters is taken, of the given input and teacher's channels.
Prints memory and rate as it goes; the exit status is 1 if memory grew by more than 2 % after the
first 1 000 images, if a size was compiled for, or if the last quarter ran at less than 80 % of the
rate of the one before.
"""

import time
from typing import Any

import jax
import numpy as np
from absl import flags

from efficientad_jax.benchmark.soak import judge_soak
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.inference import Calibration, DetectorParams, jitted_detect
from efficientad_jax.detection.map_normalization import MapQuantiles
from efficientad_jax.detection.spec import DetectorSpec, networks_of
from experiments import run

_DETECTOR = flags.DEFINE_string("detector", "", "a folder that experiments.train left")
_IMAGES = flags.DEFINE_integer("images", 20_000, "how many images", lower_bound=1)
_SIZES = flags.DEFINE_integer("sizes", 50, "of how many sizes", lower_bound=1)
_WARM = flags.DEFINE_integer("warm", 1000, "images after which memory is not to grow")
_INPUT = flags.DEFINE_integer("input", 128, "without --detector: side of the networks' input")
_CHANNELS = flags.DEFINE_integer("channels", 32, "without --detector: the teacher's channels")

_BATCH = 8


def main() -> int:
    """Runs."""
    detector = Detector.load(_DETECTOR.value) if _DETECTOR.value else _random_detector()
    rng = np.random.default_rng(0)
    sizes = rng.integers(64, 512, (_SIZES.value, 2))
    images = [rng.integers(0, 256, (height, width, 3), np.uint8) for height, width in sizes]
    memory: dict[int, int] = {}
    times: dict[int, float] = {0: time.monotonic()}
    compiled = 0
    jitted: Any = jitted_detect  # how many programs it has, its type does not say
    done = 0
    while done < _IMAGES.value:
        batch = [images[(done + i) % len(images)] for i in range(_BATCH)]
        detector(batch)
        done += _BATCH
        compiled = compiled or jitted._cache_size()
        if done % 1000 < _BATCH or done >= _IMAGES.value:
            memory[done], times[done] = _resident_bytes(), time.monotonic()
            rate = done / (times[done] - times[0])
            print(f"{done} images, {memory[done] / 1e6:.0f} MB, {rate:.1f} images/s", flush=True)
    judgement = judge_soak(memory, times, jitted._cache_size() - compiled, _WARM.value)
    print(judgement.line)
    return 0 if judgement.fine else 1


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def _random_detector() -> Detector:
    size = (_INPUT.value, _INPUT.value)
    spec = DetectorSpec("small", _CHANNELS.value, size, False, "float32", autoencoder=False)
    teacher, student, _ = networks_of(spec)
    image = np.zeros((1, *size, 3), np.float32)
    keys = jax.random.split(jax.random.key(0))
    params = DetectorParams(teacher.init(keys[0], image), student.init(keys[1], image), None)
    calibration = Calibration(MapQuantiles(0.0, 1.0), None)
    return Detector(spec, params, calibration, {}, {})


if __name__ == "__main__":
    run(main)

"""Times EfficientAD in this package, in PyTorch, in ONNX Runtime and in OpenVINO, interleaved.

    python -m experiments.benchmark --output=runs/benchmark            detection, S and M
    python -m experiments.benchmark --train --output=runs/benchmark_train     a train step of S

Every implementation has the same weights and images, and all cores that this process may use
(`taskset -c 0,1` restricts it to two). The maps are compared before anything is timed. Detection is
timed from uint8 images on the host to maps on the host. Memory and start-up are measured in fresh
processes.
"""

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from efficientad_jax.benchmark.cost import cost_of
from efficientad_jax.benchmark.implementations import (
    LAX,
    OURS,
    STEPS_PER_CALL,
    create_train_step,
    installed_peers,
    open_implementation,
    processor,
    random_images,
    write_weights,
)
from efficientad_jax.benchmark.results import Measurement, write_results
from efficientad_jax.benchmark.start_up import StartUp, measure_start_up
from efficientad_jax.benchmark.timing import Spread, time_interleaved
from efficientad_jax.errors import InputError
from efficientad_jax.networks.pdn import SIZES, Size
from experiments import run

_OUTPUT = flags.DEFINE_string("output", "runs/benchmark", "folder for the results")
_TRAIN = flags.DEFINE_bool("train", False, "time train steps instead of detection")
_SIZES = flags.DEFINE_multi_enum("size", SIZES, SIZES, "networks")
_BATCHES = flags.DEFINE_multi_integer("batch", [1, 16], "images per call")
_ROUNDS = flags.DEFINE_integer(
    "rounds",
    15,
    "how often each is timed; a third of it with several images",
    lower_bound=1,
)
_START_UP = flags.DEFINE_bool("start_up", True, "measure start-up and memory in fresh processes")
_SIDE = flags.DEFINE_integer("side", 256, "height and width of the images", lower_bound=128)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the computation")
_ONLY = flags.DEFINE_multi_string("only", [], "implementations to compare with; default: all")

# Largest difference between maps, as a fraction of their range.
_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


def main() -> int:
    """Measures and writes the results."""
    image_size = (_SIDE.value, _SIDE.value)
    sizes: Any = _SIZES.value
    installed = installed_peers()
    peers = [name for name, available in installed.items() if available]
    names = [n for n in (OURS, LAX, *peers) if n == OURS or not _ONLY.value or n in _ONLY.value]
    facts: dict[str, object] = {
        "device": processor(),
        "jax": jax.__version__,
        "dtype": _DTYPE.value,
        "image": f"{image_size[0]}x{image_size[1]}",
        "rounds": _ROUNDS.value,
        "not installed": ", ".join(n for n, available in installed.items() if not available)
        or "none",
    }
    costs, starts, measurements = {}, {}, []

    def add(measurement: Measurement) -> str:
        # Written at once, as a rented machine may be taken away.
        measurements.append(measurement)
        return write_results(Path(_OUTPUT.value), facts, measurements, costs=costs, starts=starts)

    text = ""
    for size in sizes:
        if _TRAIN.value:
            trainable = [n for n in names if n in (OURS, LAX, "pytorch eager", "torch.compile")]
            text = add(_time_training(size, image_size, trainable))
            continue
        costs[size] = cost_of(size, image_size)
        if _START_UP.value:
            starts[size] = _measure_start_ups(size, image_size, names)
        for batch in _BATCHES.value:
            text = add(_time_detection(size, image_size, batch, names=names))
    print(text)
    print(f"results: {_OUTPUT.value}")
    return 0


def _measure_start_ups(
    size: Size, image_size: tuple[int, int], names: list[str]
) -> dict[str, StartUp]:
    with tempfile.TemporaryDirectory() as folder:
        write_weights(Path(folder), names, size, image_size=image_size, batch=1)
        return {
            name: measure_start_up(
                None if name == OURS else name,
                Path(folder),
                size,
                image_size=image_size,
                dtype=_DTYPE.value,
            )
            for name in tqdm(names, desc=f"{size}: start-up")
            if name != LAX
        }


def _time_detection(
    size: Size, image_size: tuple[int, int], batch: int, *, names: list[str]
) -> Measurement:
    images = random_images(batch, image_size)
    opened = {}
    with tempfile.TemporaryDirectory() as folder:
        write_weights(Path(folder), names, size, image_size=image_size, batch=batch)
        for name in tqdm(names, desc=f"{size}, batch {batch}: loading"):
            opened[name] = open_implementation(
                name, size, image_size, dtype=_DTYPE.value, batch=batch, folder=Path(folder)
            )
    expected = opened[LAX if LAX in opened else OURS](images)
    margin = _TOLERANCE[_DTYPE.value] * np.ptp(expected)
    for name, detect in opened.items():
        difference = np.abs(detect(images) - expected).max()
        if not difference <= margin:
            raise InputError(
                f"{name}: its maps differ by {difference:.2g}, expected at most {margin:.2g}; "
                "implementations with different results are not compared"
            )
    calls = {name: (lambda detect=detect: detect(images)) for name, detect in opened.items()}
    rounds = _ROUNDS.value if batch == 1 else -(-_ROUNDS.value // 3)
    return Measurement(size, f"batch {batch}", batch, time_interleaved(calls, rounds))


def _time_training(size: Size, image_size: tuple[int, int], names: list[str]) -> Measurement:
    steps = {name: create_train_step(name, size, image_size) for name in names}
    times = time_interleaved(steps, _ROUNDS.value)
    for name in (OURS, LAX):
        if name in times:
            times[name] = Spread(*(seconds / STEPS_PER_CALL for seconds in times[name]))
    return Measurement(size, "train step", 1, times)


if __name__ == "__main__":
    run(main)

"""Reads latency, throughput and memory from the file that `experiments.benchmark` writes."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from efficientad_jax.benchmark.implementations import OURS
from efficientad_jax.errors import InputError
from efficientad_jax.networks.pdn import SIZES, Size
from efficientad_jax.reproduction.aggregation import Measured

_LATENCY_BATCH, _THROUGHPUT_BATCH = 1, 16


class Speed(NamedTuple):
    """The speed of one size of network; None for values that were not measured.

    Attributes:
      latency: of one image, milliseconds.
      throughput: images per second in batches of 16.
      memory: of a process that detects in one image at a time, in MB.
    """

    latency: Measured | None = None
    throughput: Measured | None = None
    memory: Measured | None = None


class Benchmarked(NamedTuple):
    """The contents of a results file.

    Attributes:
      speeds: by size.
      measured_on: device and dtype, in words.
    """

    speeds: dict[Size, Speed]
    measured_on: str


def read_benchmark(file: Path) -> Benchmarked:
    """Reads `benchmark.json`.

    Raises:
      InputError: the file cannot be read or has another format.
    """
    try:
        document: dict[str, Any] = json.loads(file.read_text())
        facts, measurements = document["facts"], document["measurements"]
        medians = {
            (m["size"], m["images"]): m["seconds"][OURS]["median"]
            for m in measurements
            if m["what"] == f"batch {m['images']}" and OURS in m["seconds"]
        }
        peaks = {
            size: starts[OURS]["peak_bytes"]
            for size, starts in document["start_up"].items()
            if OURS in starts
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"benchmark {file}: cannot be read ({error!r}), expected the benchmark.json that "
            "`experiments.benchmark` writes in a checkout"
        ) from error
    speeds: dict[Size, Speed] = {}
    for size in SIZES:
        single, batch = (medians.get((size, n)) for n in (_LATENCY_BATCH, _THROUGHPUT_BATCH))
        speeds[size] = Speed(
            latency=None if single is None else Measured(1e3 * single),
            throughput=None if batch is None else Measured(_THROUGHPUT_BATCH / batch),
            memory=Measured(peaks[size] / 1e6) if size in peaks else None,
        )
    return Benchmarked(speeds, ", ".join(str(facts[k]) for k in ("device", "dtype") if k in facts))

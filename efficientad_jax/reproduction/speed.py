"""Latency, throughput and memory out of what `experiments.benchmark` left."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from efficientad_jax.benchmark.implementations import OURS
from efficientad_jax.errors import InputError
from efficientad_jax.networks.pdn import SIZES, Size
from efficientad_jax.reproduction.aggregation import Measured

_LATENCY_BATCH, _THROUGHPUT_BATCH = 1, 16


class Speed(NamedTuple):
    """Of one size of network; None where the benchmark did not measure it.

    Attributes:
      latency: of one image, milliseconds.
      throughput: images a second in batches of 16.
      memory: of a process that detects one image at a time, MB.
    """

    latency: Measured | None = None
    throughput: Measured | None = None
    memory: Measured | None = None


class Benchmarked(NamedTuple):
    """What a results file says.

    Attributes:
      speeds: by size.
      measured_on: device and dtype, in words.
    """

    speeds: dict[Size, Speed]
    measured_on: str


def read_benchmark(file: Path) -> Benchmarked:
    """Reads `benchmark.json`.

    Raises:
      InputError: it cannot be read, or is not a benchmark's.
    """
    try:
        document: dict[str, Any] = json.loads(file.read_text())
        facts, found = document["facts"], document["measurements"]
        medians = {
            (m["size"], m["images"]): m["seconds"][OURS]["median"]
            for m in found
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
            "`python -m experiments.benchmark` leaves"
        ) from error
    speeds: dict[Size, Speed] = {}
    for size in SIZES:
        one, many = (medians.get((size, n)) for n in (_LATENCY_BATCH, _THROUGHPUT_BATCH))
        speeds[size] = Speed(
            latency=None if one is None else Measured(1e3 * one),
            throughput=None if many is None else Measured(_THROUGHPUT_BATCH / many),
            memory=Measured(peaks[size] / 1e6) if size in peaks else None,
        )
    return Benchmarked(speeds, ", ".join(str(facts[k]) for k in ("device", "dtype") if k in facts))

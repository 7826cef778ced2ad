"""What a server counts, for Prometheus."""

from collections.abc import Callable
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from efficientad_jax.detection.detector import BATCH_SIZE

# From one image on a GPU to a full queue on a small CPU.
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0)

OUTCOMES = ("ok", "refused", "overloaded", "failed", "gone")


class Metrics(NamedTuple):
    """The metrics of one server.

    Attributes:
      registry: that holds them, and those of the process (memory, CPU time, open files).
      requests: by outcome, one of `OUTCOMES`.
      seconds: from a request's head to its answer, of requests that were answered with a score.
      batch_size: images that the detector was given at once.
    """

    registry: CollectorRegistry
    requests: Counter
    seconds: Histogram
    batch_size: Histogram


def create_metrics(waiting: Callable[[], int]) -> Metrics:
    """Metrics in a registry of their own, all counts 0.

    Args:
      waiting: how many requests are in work or wait just now.
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    requests = Counter(
        "efficientad_requests",
        "Images posted: ok, refused (4xx), overloaded (503), failed (500), gone (hung up).",
        ["outcome"],
        registry=registry,
    )
    for outcome in OUTCOMES:
        requests.labels(outcome)  # From the start, so that a rate has a first value.
    seconds = Histogram(
        "efficientad_request_seconds",
        "From a request's head to its answer, of requests with outcome ok.",
        buckets=_SECONDS,
        registry=registry,
    )
    batch_size = Histogram(
        "efficientad_batch_size",
        "Images that the detector was given at once.",
        buckets=range(1, BATCH_SIZE + 1),
        registry=registry,
    )
    queue = Gauge(
        "efficientad_requests_waiting",
        "Requests in work or waiting.",
        registry=registry,
    )
    queue.set_function(waiting)
    return Metrics(registry, requests, seconds, batch_size)

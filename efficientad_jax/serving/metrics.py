"""The metrics that a server exports to Prometheus."""

from collections.abc import Callable
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from efficientad_jax.detection.detector import BATCH_SIZE

# Histogram buckets: from one image on a GPU to a full queue on a small CPU.
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0)

OUTCOMES = ("ok", "refused", "overloaded", "failed", "gone")


class ServerMetrics(NamedTuple):
    """The metrics of one server.

    Attributes:
      registry: holds these metrics and those of the process (memory, CPU time, open files).
      requests: number of requests by outcome, one of `OUTCOMES`.
      seconds: time from a request's header to its response, of requests with outcome ok.
      batch_size: images per batch.
    """

    registry: CollectorRegistry
    requests: Counter
    seconds: Histogram
    batch_size: Histogram


def create_metrics(waiting: Callable[[], int]) -> ServerMetrics:
    """Creates metrics in a new registry, with all counts 0.

    Args:
      waiting: returns how many requests are waiting or being processed.
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    requests = Counter(
        "efficientad_requests",
        "Images posted: ok, refused (4xx), overloaded (503), failed (500), gone (disconnected).",
        ["outcome"],
        registry=registry,
    )
    for outcome in OUTCOMES:
        requests.labels(outcome)  # Creates the series at once, so that rates start from 0.
    seconds = Histogram(
        "efficientad_request_seconds",
        "Time from a request's header to its response, of requests with outcome ok.",
        buckets=_SECONDS,
        registry=registry,
    )
    batch_size = Histogram(
        "efficientad_batch_size",
        "Images per batch of the detector.",
        buckets=range(1, BATCH_SIZE + 1),
        registry=registry,
    )
    queue = Gauge(
        "efficientad_requests_waiting",
        "Requests that are waiting or being processed.",
        registry=registry,
    )
    queue.set_function(waiting)
    return ServerMetrics(registry, requests, seconds, batch_size)

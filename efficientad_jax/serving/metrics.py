"""The metrics that a server exports to Prometheus."""

import math
from collections.abc import Callable
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from efficientad_jax.detection.detector import BATCH_SIZE
from efficientad_jax.detection.threshold import WORDS
from efficientad_jax.monitoring.drift import DriftMonitor

# Histogram buckets: from one image on a GPU to a full queue on a small CPU.
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0)

# Buckets of the scores of a detector that holds no validation scores.
_SCORES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

OUTCOMES = ("ok", "refused", "overloaded", "failed", "gone")


class ServerMetrics(NamedTuple):
    """The metrics of one server.

    Attributes:
      registry: holds these metrics and those of the process (memory, CPU time, open files).
      requests: number of requests by outcome, one of `OUTCOMES`.
      seconds: time from a request's header to its response, of requests with outcome ok.
      batch_size: images per batch.
      scores: of the images; the buckets end at the tenths of the validation scores.
      verdicts: number of images by verdict, one of the words of `threshold.WORDS`.
    """

    registry: CollectorRegistry
    requests: Counter
    seconds: Histogram
    batch_size: Histogram
    scores: Histogram
    verdicts: Counter


def create_metrics(waiting: Callable[[], int], monitor: DriftMonitor) -> ServerMetrics:
    """Creates metrics in a new registry, with all counts 0.

    Args:
      waiting: returns how many requests are waiting or being processed.
      monitor: of scores and brightness.
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
    scores, verdicts = _score_metrics(registry, monitor)
    return ServerMetrics(registry, requests, seconds, batch_size, scores, verdicts)


def _score_metrics(registry: CollectorRegistry, monitor: DriftMonitor) -> tuple[Histogram, Counter]:
    """Creates the metrics of scores, verdicts and drift. Those of drift read the monitor."""
    scores = Histogram(
        "efficientad_score",
        "Scores of images; each bucket but the last has a tenth of the validation scores.",
        buckets=monitor.edges or _SCORES,
        registry=registry,
    )
    verdicts = Counter(
        "efficientad_verdicts",
        "Images by verdict: anomalous, normal, no verdict (the detector has no threshold).",
        ["verdict"],
        registry=registry,
    )
    for word in WORDS.values():
        verdicts.labels(word)
    drift = {
        "alarm": "1 while recent images do not look like the validation images, else 0.",
        "shift": "Share of pairs in which a recent score is above a validation score, minus 0.5.",
        "limit": "The size of a shift above which there is an alarm.",
        "brightness_shift": "The same share for the mean brightness, minus 0.5.",
        "brightness_limit": "The size of a brightness_shift above which there is an alarm.",
    }
    for name, description in drift.items():
        gauge = Gauge(
            f"efficientad_drift_{name}", f"{description} NaN if unknown.", registry=registry
        )
        gauge.set_function(lambda name=name: _number(monitor.fields()[name]))
    return scores, verdicts


def _number(value: bool | float | None) -> float:
    return math.nan if value is None else float(value)

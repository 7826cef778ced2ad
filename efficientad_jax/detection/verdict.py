"""Whether a score is an alarm."""

from typing import Any

from efficientad_jax.detection.threshold import Threshold

# For people.
WORDS = {True: "anomalous", False: "normal", None: "no verdict"}


def verdict_of(threshold: Threshold | None, score: float) -> bool | None:
    """Whether the score reaches the threshold, None without one."""
    return None if threshold is None else score >= threshold.value


def score_fields(threshold: Threshold | None, score: float) -> dict[str, Any]:
    """What is told of a score in JSON: itself, the verdict, and the threshold that it is by."""
    return {
        "score": score,
        "verdict": verdict_of(threshold, score),
        "threshold": None if threshold is None else threshold.value,
    }

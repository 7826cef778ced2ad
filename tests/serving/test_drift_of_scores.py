"""Scores, verdicts and drift in the server's metrics, its health and its log."""

from dataclasses import replace

import numpy as np
import pytest

from efficientad_jax.monitoring import drift
from efficientad_jax.serving.application import create_application
from tests.helpers.detectors import random_detector, with_threshold
from tests.helpers.images import picture
from tests.helpers.live_server import running
from tests.serving.test_serving import metrics_of, post

httpx2 = pytest.importorskip("httpx2", reason="needs the client: pip install -e '.[load]'")


@pytest.mark.slow
def test_scores_are_counted_and_drift_is_reported(monkeypatch, caplog):
    monkeypatch.setattr(drift, "WINDOW", 10)
    detector = random_detector()
    score = detector(picture()).score
    validation_scores = tuple(score + 0.01 * i for i in range(40))
    darker = tuple(float(value) for value in range(40))
    known = replace(detector, validation_scores=validation_scores, validation_brightness=darker)
    known = with_threshold(known, score + 1)
    with running(create_application(known)) as address:
        for _ in range(9):
            post(address)
        before = metrics_of(address)
        assert np.isnan(before["efficientad_drift_alarm",])
        assert httpx2.get(f"{address}/health").json()["drift"]["alarm"] is None
        post(address)
        after = metrics_of(address)
        health = httpx2.get(f"{address}/health").json()
    # All scores are the lowest of the validation scores.
    assert health["drift"]["alarm"] is True
    assert health["drift"]["shift"] == pytest.approx(-0.5, abs=0.03)
    assert after["efficientad_drift_alarm",] == 1
    assert -after["efficientad_drift_shift",] > after["efficientad_drift_limit",] > 0.3
    assert after["efficientad_verdicts_total", "normal"] == 10
    assert after["efficientad_score_count",] == 10
    first = min(float(key[1]) for key in before if key[0] == "efficientad_score_bucket")
    assert first == pytest.approx(np.quantile(validation_scores, 0.1))
    assert after["efficientad_drift_brightness_shift",] == 0.5
    assert health["drift"]["brightness_shift"] == 0.5
    of_score, of_brightness = caplog.messages
    known = "no longer like that of the 40 validation images (shift"
    assert of_score.startswith(f"the score: {known} -0.")
    assert of_brightness.startswith(f"the brightness: {known} +0.50")

"""Tests the example that compares the scores of several programs."""

import json
import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests.helpers.command import REPOSITORY

SCRIPT = REPOSITORY / "docs" / "examples" / "python" / "compare_scores.py"


def run(*files):
    words = [sys.executable, SCRIPT, *files]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_it_prints_the_au_roc_and_the_largest_changes(tmp_path):
    rng = np.random.default_rng(0)
    images = [f"test/{kind}/{i}.png" for kind in ("good", "scratch") for i in range(9)]
    anomalous = [image.split("/")[1] != "good" for image in images]
    first = rng.normal(np.array(anomalous), 1)
    second = first + rng.normal(0, 0.1, 18)
    for name, scores, order in (("a", first, range(18)), ("b", second, range(17, -1, -1))):
        lines = [json.dumps({"image": images[i], "score": scores[i]}) for i in order]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    done = run(tmp_path / "a", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    changes = np.abs(second - first) / np.ptp(first)
    for line, scores, change in zip(
        done.stdout.splitlines(), (first, second), (0 * changes, changes), strict=True
    ):
        assert f"image AU-ROC {roc_auc_score(anomalous, scores):.4f};" in line
        assert f"{change[:9].max():.4f} (good images), {change.max():.4f} (all)" in line

    (tmp_path / "b").write_text(json.dumps({"image": images[0], "score": 1.0}) + "\n")
    done = run(tmp_path / "a", tmp_path / "b")
    assert done.returncode == 1
    assert done.stderr.strip().endswith(f"b: other images than in {tmp_path / 'a'}")

"""Evaluates a detector on the test images of the dataset it was trained on.

    python -m experiments.evaluate --workdir=runs/elpv_mono

Prints the metrics, writes `metrics.json` and `report.html` into the work directory, and adds the
metrics to the detector's `detector.json`.
"""

from pathlib import Path

from absl import flags

from efficientad_jax.evaluation.evaluate_run import evaluate_workdir, evaluation_summary
from experiments import run

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "the folder given to experiments.train", required=True
)


def main() -> int:
    """Evaluates."""
    print(evaluation_summary(evaluate_workdir(Path(_WORKDIR.value).absolute())))
    return 0


if __name__ == "__main__":
    run(main)

"""Evaluates a detector on the test images of the dataset it was trained on.

    python -m experiments.evaluate --workdir=runs/elpv_mono

Prints the metrics, writes `metrics.json` and `report.html` into the work directory, and adds the
metrics to the detector's `detector.json`.
"""

from absl import flags

from efficientad_jax.evaluation.evaluate_run import evaluate_workdir, evaluation_summary
from efficientad_jax.runs.remote import local_workdir
from experiments import run

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "the folder given to experiments.train", required=True
)
_ROOT = flags.DEFINE_string(
    "dataset_root", "", "where the dataset lies now, if it has moved since the training"
)
_IGNORE_MASKS = flags.DEFINE_string(
    "ignore_masks", "", "where the images' own ignore masks lie now, if they have moved"
)


def main() -> int:
    """Evaluates."""
    with local_workdir(_WORKDIR.value) as workdir:
        evaluation = evaluate_workdir(
            workdir.absolute(), root=_ROOT.value, ignore_masks=_IGNORE_MASKS.value
        )
    print(evaluation_summary(evaluation).replace(str(workdir.absolute()), _WORKDIR.value))
    return 0


if __name__ == "__main__":
    run(main)

"""Evaluates a detector in float32 and in bfloat16: what a faster data type costs in quality.

    python -m experiments.compare_dtypes --workdir=runs/folder

The networks and the calibration are the same; only the data type of the computation differs. A CPU
computes bfloat16 slowly, but rounds as an accelerator does.
"""

from dataclasses import replace

import numpy as np
from absl import flags

from efficientad_jax.config import read_config
from efficientad_jax.data.loading import load_configured_dataset
from efficientad_jax.detection.detector import Detector
from efficientad_jax.errors import InputError
from efficientad_jax.evaluation.evaluate_run import ignored_pixels
from efficientad_jax.evaluation.metrics import evaluate
from efficientad_jax.evaluation.split_maps import maps_of_split
from efficientad_jax.runs.remote import local_workdir
from efficientad_jax.runs.workdir import Workdir
from experiments import run

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "the folder given to experiments.train", required=True
)
_DTYPES = ("float32", "bfloat16")


def main() -> int:
    """Prints the metrics by data type, and how far the scores lie apart."""
    with local_workdir(_WORKDIR.value) as workdir:
        detector = Detector.load(Workdir(workdir).detector)
        test = load_configured_dataset(read_config(detector.config), detector.framing).test
        if not test.names:
            raise InputError(f"workdir {_WORKDIR.value}: its dataset has no test images")
        scores = []
        for dtype in _DTYPES:
            spec = detector.spec._replace(dtype=dtype)
            maps = maps_of_split(replace(detector, spec=spec), test)
            metrics = evaluate(
                maps.scores,
                test.labels,
                maps.combined,
                masks=test.masks,
                defects=test.defects,
                ignored=ignored_pixels(detector.framing, test),
            )
            print(
                f"{dtype:<10} image AU-ROC {_shown(metrics.image_auroc)}, pixel AU-ROC "
                f"{_shown(metrics.pixel_auroc)}, AU-PRO {_shown(metrics.au_pro)}"
            )
            scores.append(maps.scores)
    print(f"largest difference of a score: {np.abs(scores[0] - scores[1]).max():.4f}")
    if detector.threshold is not None:
        above = [values >= detector.threshold.limit for values in scores]
        print(f"verdicts that differ: {(above[0] != above[1]).sum()} of {len(test.labels)}")
    return 0


def _shown(metric: float | None) -> str:
    return "not defined" if metric is None else f"{metric:.4f}"


if __name__ == "__main__":
    run(main)

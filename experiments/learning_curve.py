"""Trains detectors of several lengths and shows their metrics, as a table and a plot.

    python -m experiments.learning_curve --config=configs/folder.py --config.dataset.root=FOLDER \
        --steps=1000,2000,4000,8000 --categories=all --seeds=3 --workdir=runs/curve

Trainings of all lengths share one training at the constant learning rate, from which each branches
off for its last steps: see `efficientad_jax/sweep/learning_curve.py`. The flags of a sweep are
those of this command too (docs/sweep.md).

Next to the metrics of the test images is the proxy AU-ROC of validation images with synthetic
defects, and below the table its rank correlation with the image AU-ROC (docs/synthetic_defects.md).
"""

import sys
from collections.abc import Sequence
from functools import partial

from absl import flags
from ml_collections import config_flags

from efficientad_jax.config import read_config, replace
from efficientad_jax.errors import InputError
from efficientad_jax.figures.learning_curves import draw_learning_curves
from efficientad_jax.scheduling.job import Job
from efficientad_jax.scheduling.progress import progress_display
from efficientad_jax.scheduling.run_jobs import run_jobs
from efficientad_jax.storage.atomic import write_atomically
from efficientad_jax.sweep.learning_curve import train_branches
from efficientad_jax.sweep.plan import Training, parse_axis, planned_trainings
from efficientad_jax.sweep.proxy_ranking import (
    PROXY_METRICS,
    ranking_table,
    rankings,
    with_proxies,
)
from efficientad_jax.sweep.summary import (
    METRICS,
    Metrics,
    metrics_csv,
    metrics_table,
    read_metrics,
)
from experiments import run
from experiments.scheduling_flags import ADDRESS, FEATURE_CACHE_GB, demand, shared_folder

_CONFIG = config_flags.DEFINE_config_file("config")
flags.mark_flag_as_required("config")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder for all trainings", required=True)
_STEPS = flags.DEFINE_list("steps", None, "lengths of training, separated by commas", required=True)
_CATEGORIES = flags.DEFINE_list("categories", "all", "'all' or names, separated by commas")
_SEEDS = flags.DEFINE_integer("seeds", 1, "trainings per category, with seeds from config.seed on")
_GRID = flags.DEFINE_multi_string(
    "grid", [], "config.FIELD=VALUE,VALUE: trains with each value; several flags are combined"
)


def main() -> int:
    """Trains, evaluates, tabulates and draws."""
    try:
        lengths = sorted({int(steps) for steps in _STEPS.value})
    except ValueError:
        raise InputError(f"--steps={','.join(_STEPS.value)}: expected whole numbers") from None
    grid = [parse_axis(text) for text in _GRID.value]
    config = replace(read_config(_CONFIG.value), {"train.steps": lengths[-1]})
    curves = planned_trainings(config, _CATEGORIES.value, _SEEDS.value, grid=grid)
    workdir = shared_folder("workdir", _WORKDIR.value)
    branches = [_branch(curve, length) for length in lengths for curve in curves]
    jobs = []
    for curve in curves:
        folders = {length: workdir / _branch(curve, length).name for length in lengths}
        trunk = workdir / "trunks" / curve.name
        work = partial(
            train_branches, curve.config, folders, trunk, cache_gb=FEATURE_CACHE_GB.value
        )
        jobs.append(Job(curve.name, lengths[-1], work))
    with progress_display({job.name: job.steps for job in jobs}) as tell:
        failed = run_jobs(jobs, tell, demand=demand(), address=ADDRESS.value)
    results = with_proxies(branches, read_metrics(branches, workdir), workdir)
    names = {**METRICS, **PROXY_METRICS}
    write_atomically(workdir / "figures.csv", metrics_csv(branches, results, names).encode())
    print(metrics_table(branches, results, names))
    ranked = rankings(branches, results)
    if ranked:
        print(f"\nSpearman's correlation with the image AU-ROC:\n\n{ranking_table(ranked)}\n")
    points = {c: (r.pairs, r.correlations["proxy_auroc"]) for c, r in ranked.items()}
    figure = draw_learning_curves(_curves(branches, results), points)
    figure.savefig(workdir / "learning_curve.svg")
    print(f"written: {workdir / 'figures.csv'}, of {len(results)} of {len(branches)} trainings")
    for name, message in failed.items():
        print(f"failed: {name}: {message}", file=sys.stderr)
    return 1 if failed else 0


def _branch(curve: Training, length: int) -> Training:
    """The training of a length; its folder is that of a sweep with `--grid=config.train.steps=`."""
    return curve._replace(
        settings={**curve.settings, "train.steps": str(length)},
        config=replace(curve.config, {"train.steps": length}),
    )


def _curves(
    branches: Sequence[Training], results: dict[str, Metrics]
) -> dict[str, dict[str, dict[int, list[float]]]]:
    """The values over seeds by metric, by setting and category, and by number of steps."""
    titles = {**METRICS, "proxy_auroc": PROXY_METRICS["proxy_auroc"]}
    curves: dict[str, dict[str, dict[int, list[float]]]] = {}
    for branch in branches:
        setting = ",".join(f"{f}={v}" for f, v in branch.settings.items() if f != "train.steps")
        label = " ".join(filter(None, (setting, branch.category or "images")))
        for metric, value in results.get(branch.name, {}).items():
            if value is not None and metric in titles:
                by_steps = curves.setdefault(titles[metric], {}).setdefault(label, {})
                by_steps.setdefault(branch.config.train.steps, []).append(value)
    return curves


if __name__ == "__main__":
    run(main)

"""Trains and evaluates detectors for many settings, categories and seeds.

    python -m experiments.sweep --config=configs/paper.py:mvtec_ad --config.dataset.root=MVTEC \
        --categories=all --seeds=5 --workdir=runs/sweep

Each training has a folder, such as runs/sweep/bottle/seed0, with the files that `experiments.train`
and `experiments.evaluate` write, without checkpoints. `--grid=config.losses.p_hard=0.99,0.999`
trains with each of the values. Run the same command again to complete what is missing or failed.
Where Ray is installed it runs the trainings, on this machine or on a cluster: see docs/sweep.md.
The exit status is 1 if a training failed.
"""

import sys
from functools import partial

from absl import flags
from ml_collections import config_flags

from efficientad_jax.config import read_config
from efficientad_jax.errors import InputError
from efficientad_jax.scheduling.job import Event, Job
from efficientad_jax.scheduling.progress import progress_display
from efficientad_jax.scheduling.run_jobs import run_jobs
from efficientad_jax.scheduling.train_and_evaluate import finished, train_and_evaluate
from efficientad_jax.storage.atomic import write_atomically
from efficientad_jax.sweep.plan import parse_axis, planned_trainings
from efficientad_jax.sweep.summary import metrics_csv, metrics_table, read_metrics
from experiments import run
from experiments.scheduling_flags import ADDRESS, FEATURE_CACHE_GB, demand, shared_folder

_CONFIG = config_flags.DEFINE_config_file("config")
flags.mark_flag_as_required("config")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder for all trainings", required=True)
_CATEGORIES = flags.DEFINE_list("categories", "all", "'all' or names, separated by commas")
_SEEDS = flags.DEFINE_integer("seeds", 1, "trainings per category, with seeds from config.seed on")
_GRID = flags.DEFINE_multi_string(
    "grid", [], "config.FIELD=VALUE,VALUE: trains with each value; several flags are combined"
)


def main() -> int:
    """Trains, evaluates and summarizes."""
    config = read_config(_CONFIG.value)
    grid = [parse_axis(text) for text in _GRID.value]
    trainings = planned_trainings(config, _CATEGORIES.value, _SEEDS.value, grid=grid)
    workdir = shared_folder("workdir", _WORKDIR.value)
    failed: dict[str, str] = {}
    jobs = []
    steps = {training.name: training.config.train.steps for training in trainings}
    with progress_display(steps) as tell:
        for training in trainings:
            folder, name = workdir / training.name, training.name
            try:
                result = finished(training.config, folder)
            except InputError as error:
                failed[name] = str(error)
                tell(name, Event("failed", text=str(error)))
                continue
            if result is not None:
                tell(name, Event("done", steps[name], result))
                continue
            work = partial(
                train_and_evaluate, training.config, folder, cache_gb=FEATURE_CACHE_GB.value
            )
            jobs.append(Job(name, steps[name], work))
        failed |= run_jobs(jobs, tell, demand=demand(), address=ADDRESS.value)
    results = read_metrics(trainings, workdir)
    write_atomically(workdir / "figures.csv", metrics_csv(trainings, results).encode())
    print(metrics_table(trainings, results))
    print(f"written: {workdir / 'figures.csv'}, of {len(results)} of {len(trainings)} trainings")
    for name, message in failed.items():
        print(f"failed: {name}: {message}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    run(main)

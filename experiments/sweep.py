"""Trains and evaluates detectors for many categories and seeds, one at a time per device.

    python -m experiments.sweep --config=configs/paper.py:mvtec_ad --config.dataset.root=MVTEC \
        --categories=all --seeds=5 --workdir=runs/sweep

Each training has a folder, such as runs/sweep/bottle/seed0, with the files that `experiments.train`
and `experiments.evaluate` write, without checkpoints. Run the same command again to complete what
is missing or failed. On several hosts, run the same command on each, with a --workdir that all of
them share: see docs/sweep.md. The exit status is 1 if a training failed.
"""

import sys
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from efficientad_jax.config import read_config
from efficientad_jax.runs.processes import join_processes
from efficientad_jax.storage.atomic import write_atomically
from efficientad_jax.sweep.execution import carry_out
from efficientad_jax.sweep.plan import planned_runs
from efficientad_jax.sweep.progress import progress_display
from efficientad_jax.sweep.summary import metrics_csv, metrics_table, read_metrics
from experiments import run

_CONFIG = config_flags.DEFINE_config_file("config")
flags.mark_flag_as_required("config")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder for all trainings", required=True)
_CATEGORIES = flags.DEFINE_list("categories", "all", "'all' or names, separated by commas")
_SEEDS = flags.DEFINE_integer("seeds", 1, "trainings per category, with seeds from config.seed on")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of process 0, or 'auto'; only for TPU pods"
)
_PROCESSES = flags.DEFINE_integer("processes", 1, "number of processes")
_PROCESS = flags.DEFINE_integer("process", 0, "index of this process, from 0")


def main() -> int:
    """Trains, evaluates and summarizes."""
    join_processes(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    config = read_config(_CONFIG.value)
    runs = planned_runs(config, _CATEGORIES.value, _SEEDS.value)
    workdir = Path(_WORKDIR.value).absolute()
    with progress_display(runs, workdir) as tell:
        # The processes of one JAX program must end together.
        outcome = carry_out(runs, workdir, tell, wait_for_others=jax.process_count() > 1)
    results = read_metrics(runs, workdir)
    write_atomically(workdir / "figures.csv", metrics_csv(runs, results).encode())
    print(metrics_table(runs, results))
    print(f"written: {workdir / 'figures.csv'}, of {len(results)} of {len(runs)} trainings")
    if outcome.in_other_processes:
        print(f"{len(outcome.in_other_processes)} trainings are still running in other processes")
    for name, message in outcome.failed.items():
        print(f"failed: {name}: {message}", file=sys.stderr)
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    run(main)

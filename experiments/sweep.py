"""Trains and evaluates detectors of many categories and seeds, one on each device at a time.

    python -m experiments.sweep --config=configs/paper.py:mvtec_ad --config.dataset.root=MVTEC \
        --categories=all --seeds=5 --workdir=runs/sweep

Each training's folder is what `experiments.train` and `experiments.evaluate` leave, such as
runs/sweep/bottle/seed0, without the checkpoints. A second start does what is missing, and what
failed. For several hosts see docs/sweep.md: each gives the same command, with a --workdir
that all of them see. Ends with status 1 where a training failed.
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
from efficientad_jax.sweep.progress import one_screen
from efficientad_jax.sweep.summary import figures_csv, figures_table, read_figures
from experiments import run

_CONFIG = config_flags.DEFINE_config_file("config")
flags.mark_flag_as_required("config")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder for all trainings", required=True)
_CATEGORIES = flags.DEFINE_list("categories", "all", "'all' or names, separated by commas")
_SEEDS = flags.DEFINE_integer("seeds", 1, "trainings of each category, from config.seed on")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of process 0, or 'auto': for TPU pods alone"
)
_PROCESSES = flags.DEFINE_integer("processes", 1, "how many processes there are")
_PROCESS = flags.DEFINE_integer("process", 0, "which of them this is, from 0")


def main() -> int:
    """Trains, evaluates and sums up."""
    join_processes(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    config = read_config(_CONFIG.value)
    runs = planned_runs(config, _CATEGORIES.value, _SEEDS.value)
    workdir = Path(_WORKDIR.value).absolute()
    with one_screen(runs, workdir) as tell:
        # Processes of one JAX program are to end together.
        outcome = carry_out(runs, workdir, tell, until_all=jax.process_count() > 1)
    figures = read_figures(runs, workdir)
    write_atomically(workdir / "figures.csv", figures_csv(runs, figures).encode())
    print(figures_table(runs, figures))
    print(f"written: {workdir / 'figures.csv'}, of {len(figures)} of {len(runs)} trainings")
    if outcome.elsewhere:
        print(f"{len(outcome.elsewhere)} trainings are still at work in other processes")
    for name, message in outcome.failed.items():
        print(f"failed: {name}: {message}", file=sys.stderr)
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    run(main)

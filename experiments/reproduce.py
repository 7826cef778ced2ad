"""Reproduces a table of the paper: trains what is missing, prints ours next to the paper's.

    python -m experiments.reproduce --table=2 --data=DATA --config.pretraining_images=PHOTOGRAPHS

DATA holds the folders mvtec_ad, visa and mvtec_loco, or their archives: see docs/reproduction.md.
Each run has a folder in --results and is done once; run the same command again to resume
interrupted runs. Failed runs are reported and the others continue. The exit status is 1 if a run
failed, 130 after Ctrl-C and 75 after SIGTERM.

Tables: 1 comparison, 2 collections, 3 quantiles and mining factor, 4 and 5 ablations, 11 cost.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from efficientad_jax.benchmark.cost import Cost, cost_of
from efficientad_jax.config import Config, read_config, replace
from efficientad_jax.data.files import list_images
from efficientad_jax.errors import InputError
from efficientad_jax.evaluation.paper_results import RUNS, SPEED_MEASURED_ON
from efficientad_jax.networks.pdn import NAMES, SIZES, Size
from efficientad_jax.reproduction.collections_on_disk import (
    COLLECTIONS,
    categories_of,
    check_categories,
    find_collection,
)
from efficientad_jax.reproduction.execution import planned_jobs
from efficientad_jax.reproduction.plan import Inputs, Run, configuration_of, planned_runs
from efficientad_jax.reproduction.rendering import csv_text, latex, markdown, runs_csv
from efficientad_jax.reproduction.results import Results
from efficientad_jax.reproduction.speed import Benchmarked, read_benchmark
from efficientad_jax.reproduction.tables import (
    TABLES,
    Measurements,
    detectors_of,
    fill,
    rows_of,
)
from efficientad_jax.scheduling.job import Event
from efficientad_jax.scheduling.progress import progress_display
from efficientad_jax.scheduling.run_jobs import run_jobs
from efficientad_jax.storage.atomic import write_atomically
from experiments import run
from experiments.scheduling_flags import ADDRESS, FEATURE_CACHE_GB, demand, shared_folder

_CONFIG = config_flags.DEFINE_config_file("config", "configs/paper.py", lock_config=True)
_TABLE = flags.DEFINE_enum(
    "table", None, [str(n) for n in TABLES], "number of the table", required=True
)
_DATA = flags.DEFINE_string("data", "", "folder that holds mvtec_ad, visa and mvtec_loco")
_RESULTS = flags.DEFINE_string("results", "runs/reproduction", "folder for runs and tables")
_ALSO = flags.DEFINE_list(
    "also", [], "folders of other trainings, such as a sweep's; those of the table are not repeated"
)
_SEEDS = flags.DEFINE_list("seeds", [str(i) for i in range(RUNS)], "seeds, one run for each")
_CATEGORIES = flags.DEFINE_list("categories", [], "categories; default: all of each collection")
_SIZES = flags.DEFINE_list("sizes", [], "small, medium; default: those in the paper's table")
_STEPS = flags.DEFINE_integer("steps", None, "training steps; the same as --config.train.steps")
_TEACHERS: dict[Size, flags.FlagHolder[str]] = {
    size: flags.DEFINE_string(f"teacher_{size}", "", f"file of the teacher of {NAMES[size]}")
    for size in SIZES
}
_BENCHMARK = flags.DEFINE_string("benchmark", "", "benchmark.json that experiments.benchmark wrote")
_TRAIN = flags.DEFINE_bool("train", True, "--notrain makes the table from the runs that are done")


def main() -> int:  # long: reads every flag of the command
    """Runs and reports."""
    number = int(_TABLE.value)
    base = read_config(_CONFIG.value)
    _check_unset(base)
    if _STEPS.value is not None:
        base = replace(base, {"train.steps": _STEPS.value})
    sizes, seeds, categories = _sizes(number), _seeds(), tuple(_CATEGORIES.value)
    check_categories(categories)
    benchmarked = read_benchmark(Path(_BENCHMARK.value)) if _BENCHMARK.value else None
    folder = shared_folder("results", _RESULTS.value)
    others = [Path(other).absolute() for other in _ALSO.value]
    rows = rows_of(number, sizes, base)
    detectors = detectors_of(number, rows)
    teachers: dict[Size, str] = {size: flag.value for size, flag in _TEACHERS.items()}
    inputs = Inputs({}, teachers)

    absent: list[str] = []
    failed: dict[Run, str] = {}
    if detectors and _TRAIN.value:
        collections = {name: find_collection(_data(), name, categories) for name in COLLECTIONS}
        roots = {name: f.root for name, f in collections.items() if f.root is not None}
        inputs = Inputs(roots, teachers)
        present = {name: f.categories for name, f in collections.items()}
        planned = planned_runs(present, detectors, seeds)
        _check_photographs(planned, base, inputs)
        absent = [line for f in collections.values() for line in f.absent]
        for line in absent:
            print(f"absent: {line}", file=sys.stderr)
        failed = _carry_out(planned, Results(folder, base, inputs, others=others))

    results = Results(folder, base, inputs, others=others)
    all_runs = planned_runs(categories_of(categories), detectors, seeds)
    read = {run: results.read(run) for run in all_runs if run not in failed}
    done = {run: metrics for run, metrics in read.items() if metrics is not None}
    side = (base.model.input_height, base.model.input_width)
    costs: dict[Size, Cost] = {size: cost_of(size, side) for size in sizes} if number == 11 else {}
    notes = _speed_notes(benchmarked) if number in (1, 11) else []
    if costs:
        notes.append(f"Parameters and operations: ours at {side[0]}x{side[1]}.")
    if detectors:
        notes.append(
            f"Ours: {base.train.steps} steps at {side[0]}x{side[1]}, mean ± standard deviation "
            f"over seeds {', '.join(map(str, seeds))}; (n/m): results of n of m categories. "
            f"{len(done)} of {len(all_runs)} runs are done."
        )
    notes += [f"Absent: {line}." for line in absent]
    notes += [f"Failed: {failed_run.name}: {error}" for failed_run, error in failed.items()]
    speeds = benchmarked.speeds if benchmarked else {}
    table = fill(number, rows, Measurements(done, speeds, costs), notes)
    written = {".md": markdown(table), ".csv": csv_text(table), ".tex": latex(table)}
    if detectors:
        written["_runs.csv"] = runs_csv(done)
    for ending, text in written.items():
        write_atomically(folder / f"table_{number}{ending}", text.encode())
    print(written[".md"])
    print(f"written: {folder / f'table_{number}'}{{{','.join(written)}}}")
    if failed:
        print(f"error: {len(failed)} runs failed, see above", file=sys.stderr)
    return 1 if failed else 0


def _carry_out(runs: Sequence[Run], results: Results) -> dict[Run, str]:
    """Does what is missing; returns the error of each run that failed."""
    by_job, jobs, failed = planned_jobs(runs, results, cache_gb=FEATURE_CACHE_GB.value)
    steps = {job.name: job.steps for job in jobs} | {run.name: 0 for run in failed}
    with progress_display(steps) as tell:
        for planned_run, message in failed.items():
            tell(planned_run.name, Event("failed", text=message))
        failed_jobs = run_jobs(jobs, tell, demand=demand(), address=ADDRESS.value)
    for name, message in failed_jobs.items():
        failed |= dict.fromkeys(by_job[name], message)
    return failed


def _check_unset(base: Config) -> None:
    """Refuses fields that each run sets itself, instead of ignoring them."""
    for field, value, instead in (
        ("teacher", base.teacher, "--teacher_small and --teacher_medium"),
        ("category", base.category, "--categories"),
        ("dataset.root", base.dataset.root, "--data"),
    ):
        if value:
            raise InputError(f"--config.{field}={value}: each run sets it; use {instead}")


def _sizes(number: int) -> list[Size]:
    unknown = sorted(set(_SIZES.value) - set(SIZES))
    if unknown:
        raise InputError(f"--sizes={unknown[0]}: expected some of {', '.join(SIZES)}")
    return [size for size in SIZES if size in (_SIZES.value or TABLES[number])]


def _seeds() -> list[int]:
    try:
        return [int(seed) for seed in dict.fromkeys(_SEEDS.value)]
    except ValueError:
        raise InputError(f"--seeds={','.join(_SEEDS.value)}: expected whole numbers") from None


def _data() -> Path:
    data = Path(_DATA.value).absolute()
    if not _DATA.value or not data.is_dir():
        raise InputError(
            f"--data={_DATA.value}: no such folder, expected one that holds "
            f"{', '.join(COLLECTIONS)}; --notrain makes the table from the runs that are done"
        )
    return data


def _check_photographs(planned: Sequence[Run], base: Config, inputs: Inputs) -> None:
    """Checks the photographs once for all runs, before the first."""
    if any(configuration_of(planned_run, base, inputs).losses.penalty for planned_run in planned):
        if not base.pretraining_images:
            raise InputError(
                "config.losses.penalty = True: needs photographs; give their folder as "
                "--config.pretraining_images, or switch it off"
            )
        list_images(Path(base.pretraining_images))


def _speed_notes(benchmarked: Benchmarked | None) -> list[str]:
    measured_on = benchmarked.measured_on if benchmarked else "not measured, see --benchmark"
    return [f"Speed and memory: the paper's {SPEED_MEASURED_ON}; ours {measured_on}."]


if __name__ == "__main__":
    run(main)

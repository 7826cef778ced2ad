"""Times a sweep against the commands `train` and `evaluate` for each of its trainings.

    python -m experiments.benchmark_sweep --config=configs/folder.py --config.dataset.root=FOLDER \
        --config.train.steps=1000 --seeds=2 --workdir=runs/benchmark_sweep

First the pairs of commands run, one pair after another. Then the sweep runs without the cache of
teacher features and again with it. All three must leave the same detectors, bit for bit. The flags
are those of the sweep.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from efficientad_jax.config import read_config
from efficientad_jax.errors import InputError
from efficientad_jax.runs.workdir import Workdir
from efficientad_jax.sweep.plan import planned_trainings
from experiments import run

_CONFIG = config_flags.DEFINE_config_file("config")
flags.mark_flag_as_required("config")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder for all trainings", required=True)
_SEEDS = flags.DEFINE_integer("seeds", 1, "trainings per category, with seeds from config.seed on")


def main() -> int:
    """Times and prints."""
    workdir = Path(_WORKDIR.value).absolute()
    if workdir.exists():
        raise InputError(f"--workdir={workdir}: exists already; give the name of a new folder")
    config_arguments = [a for a in sys.argv[1:] if a.startswith("--config")]
    trainings = planned_trainings(read_config(_CONFIG.value), ["all"], _SEEDS.value)
    names = [training.name for training in trainings]

    start = time.perf_counter()
    for training in trainings:
        folder = f"--workdir={workdir / 'pairs' / training.name}"
        chosen = [f"--config.category={training.category}", f"--config.seed={training.seed}"]
        _command("train", *config_arguments, *chosen, folder)
        _command("evaluate", folder)
    seconds = {"pairs of commands": time.perf_counter() - start}
    for name, cache_gb in (("sweep", 0), ("sweep with cache", 20)):
        start = time.perf_counter()
        flags_of_sweep = [f"--workdir={workdir / name}", f"--feature_cache_gb={cache_gb}"]
        _command(
            "sweep", *config_arguments, f"--seeds={_SEEDS.value}", *flags_of_sweep, cache=workdir
        )
        seconds[name] = time.perf_counter() - start

    print(f"{len(names)} trainings of {trainings[0].config.train.steps} steps")
    for name, duration in seconds.items():
        ratio = duration / seconds["pairs of commands"]
        print(f"{name:<20}{duration:8.1f} s, {ratio:.3f} of the pairs")
        if name != "pairs of commands":
            equal = [_arrays(workdir / "pairs" / n) == _arrays(workdir / name / n) for n in names]
            print(f"{'':<20}{sum(equal)} of {len(names)} detectors are equal bit for bit")
    return 0


def _command(name: str, *arguments: str, cache: Path | None = None) -> None:
    """Runs a command to its end; with a cache of its own, so that it finds no features there.

    Compiled programs come from the user's cache in any case.
    """
    programs = jax.config.values["jax_compilation_cache_dir"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": programs}
    if cache is not None:
        environment["XDG_CACHE_HOME"] = str(cache / "cache")
    process = [sys.executable, "-m", f"experiments.{name}", *arguments]
    subprocess.run(process, check=True, capture_output=True, env=environment)


def _arrays(workdir: Path) -> Sequence[tuple[str, bytes]]:
    folder = Workdir(workdir).detector
    return [(file.name, file.read_bytes()) for file in sorted(folder.glob("*.safetensors"))]


if __name__ == "__main__":
    run(main)

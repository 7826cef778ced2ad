"""Compiles the programs of a configuration for an accelerator that need not be there.

    python -m experiments.compile --config=configs/paper.py --for=v5e
    python -m experiments.compile --config=configs/paper.py --for=h100 --breakdown
    python -m experiments.compile --config=configs/distill_paper.py --for=h100 --devices=8

The configuration of a training gives detection (1 and 16 images) and the training's steps, that of
a distillation its steps on all devices. Prints and saves whether they fit the device's memory, what
they compute and what the compiler makes of them: see docs/accelerators.md.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from efficientad_jax.compilation.costs import costs_of
from efficientad_jax.compilation.programs import programs_of
from efficientad_jax.compilation.table import render, write_costs
from efficientad_jax.compilation.targets import (
    TARGETS,
    compiler_lock,
    open_devices,
    prepare_process,
)
from efficientad_jax.config import read_config, read_distillation
from efficientad_jax.errors import InputError
from experiments import run

_CONFIG = config_flags.DEFINE_config_file("config")
flags.mark_flag_as_required("config")
_FOR = flags.DEFINE_enum("for", None, list(TARGETS), "accelerator to compile for", required=True)
_DEVICES = flags.DEFINE_integer("devices", 1, "number of devices, for a distillation", 1)
_ONLY = flags.DEFINE_multi_string(
    "only", [], "names of the programs to compile, as in the table, such as 'detection, batch 1'"
)
_BREAKDOWN = flags.DEFINE_bool("breakdown", False, "list the most expensive operations")
_OUTPUT = flags.DEFINE_string("output", "runs/compile", "folder for the tables")

_PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin")


def main() -> int:
    """Compiles, prints and saves."""
    raw = _CONFIG.value
    is_distillation = "backbone" in raw
    config = read_distillation(raw) if is_distillation else read_config(raw)
    if _DEVICES.value > 1 and not is_distillation:
        raise InputError(
            f"--devices={_DEVICES.value}: a training uses one device; give the configuration of a "
            "distillation"
        )
    name, target = _FOR.value, TARGETS[_FOR.value]
    prepare_process()
    with compiler_lock():
        devices = open_devices(name, _DEVICES.value)
        programs = programs_of(config, devices, target.platform)
        names = [program.name for program in programs]
        unknown = set(_ONLY.value) - set(names)
        if unknown:
            raise InputError(f"--only={unknown.pop()}: no such program, expected one of {names}")
        chosen = [p for p in programs if not _ONLY.value or p.name in _ONLY.value]
        costs = [costs_of(program, target) for program in tqdm(chosen, unit="program")]
    kind = "distill" if is_distillation else "detect_and_train"
    file = f"{kind}_{name}" + (f"_x{_DEVICES.value}" if _DEVICES.value > 1 else "")
    write_costs(Path(_OUTPUT.value), file, target, costs, versions=_versions())
    print(render(target, costs, breakdown=_BREAKDOWN.value))
    print(f"tables: {_OUTPUT.value}/compile_{file}.json and .txt")
    return 0


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    run(main)

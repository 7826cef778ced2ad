"""Distills a teacher within a given time, with as many steps of the configuration as fit.

    python -m experiments.distill_within --config=configs/distill_gpu.py:small \
        --config.images=PHOTOGRAPHS --workdir=runs/gpu_small --minutes=4

The run makes steps at the constant learning rate until the time for the decay has come. The steps
of the decay then take the time that is left. The teacher is the one that `experiments.distill`
gives for as many steps. This is for a machine that is available only for some minutes. The teacher
is saved as `WORKDIR/run/teacher.safetensors`.
"""

import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from efficientad_jax.config import DistillationConfig, as_dict, read_distillation
from efficientad_jax.distillation.loop import distill_teacher
from efficientad_jax.distillation.target_projection import FILE as PROJECTION
from efficientad_jax.errors import InputError, StoppedError
from efficientad_jax.networks.teacher import save_teacher
from efficientad_jax.runs.workdir import Workdir
from efficientad_jax.storage.atomic import write_atomically
from experiments import run

_CONFIG = config_flags.DEFINE_config_file("config")
flags.mark_flag_as_required("config")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder for the runs", required=True)
_MINUTES = flags.DEFINE_float(
    "minutes", None, "time limit, in minutes", required=True, lower_bound=0
)

# Fraction of the remaining time that the decay is planned for: rates vary, and a run that is ended
# before its last step has no teacher.
_PLANNED = 0.9


def main() -> int:
    """Distills at the constant rate, then with its decay."""
    start = time.time()
    config = read_distillation(_CONFIG.value)
    if config.schedule != "warmup_stable_decay":
        raise InputError(
            f"config.schedule = {config.schedule!r}: expected 'warmup_stable_decay', whose decay "
            "can begin at any step"
        )
    constant_steps = config.steps - config.decay_steps
    workdir = Path(_WORKDIR.value).expanduser().absolute()
    constant, final = Workdir(workdir / "constant"), Workdir(workdir / "run")
    seconds = 60 * _MINUTES.value * constant_steps / config.steps
    step = _distill_for(_with_steps(config, constant_steps, 0), constant.path, seconds)
    if step < constant_steps:
        rate, start_seconds = _rate(constant.checkpoints, start)
        left = _PLANNED * (start + 60 * _MINUTES.value - time.time() - start_seconds)
        decay = max(1, int(rate * left))
        print(f"{rate:.1f} steps/s: {step} steps, then {decay} of decay", flush=True)
        config = _with_steps(config, step, decay)
    final.path.mkdir()
    shutil.copytree(constant.checkpoints / str(step), final.checkpoints / str(step))
    shutil.copy(constant.path / PROJECTION, final.path)
    write_atomically(final.config, json.dumps(as_dict(config)).encode())
    teacher = distill_teacher(config, final.path)
    file = final.path / "teacher.safetensors"
    save_teacher(file, teacher)
    loss = teacher.record["held_out_loss"]
    print(f"{config.steps} steps in {time.time() - start:.0f} s, held-out loss {loss}: {file}")
    return 0


def _with_steps(config: DistillationConfig, constant: int, decay: int) -> DistillationConfig:
    """The configuration with other numbers of steps before the decay and during it."""
    return replace(config, steps=constant + decay, decay_steps=decay)


def _distill_for(config: DistillationConfig, workdir: Path, seconds: float) -> int:
    """Makes the steps that fit into `seconds`; returns their number."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    try:
        distill_teacher(config, workdir)
    except StoppedError as stopped:
        return stopped.step or 0
    finally:
        timer.cancel()
    return config.steps


def _rate(checkpoints: Path, start: float) -> tuple[float, float]:
    """Steps per second between the checkpoints, and seconds from `start` to the first step."""
    folders = [p for p in checkpoints.iterdir() if p.name.isdecimal()]
    saved = sorted((int(p.name), p.stat().st_mtime) for p in folders)
    (first, first_time), (last, last_time) = saved[0], saved[-1]
    if last == first:
        raise InputError(
            f"--minutes={_MINUTES.value}: one checkpoint, of step {last}, expected at least two; "
            "give more minutes or a lower config.steps_per_round"
        )
    rate = (last - first) / (last_time - first_time)
    return rate, max(0.0, first_time - start - first / rate)


if __name__ == "__main__":
    run(main)

"""Distills a teacher within a given time, with as many steps of the configuration as fit.

    python -m experiments.distill_within --config=configs/distill_gpu.py:small \
        --config.images=PHOTOGRAPHS --workdir=runs/gpu_small --minutes=4

The run makes steps at the constant learning rate until the time for the decay has come. The steps
of the decay then take the time that is left. The teacher is the one that `experiments.distill`
gives for as many steps. This is for a machine that is available only for some minutes. The teacher
is saved as `WORKDIR/run/teacher.safetensors`. The same command continues a run that was stopped.
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
from efficientad_jax.runs.checkpoints import rate_between_checkpoints
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
    workdir = Path(_WORKDIR.value).expanduser().absolute()
    constant, final = Workdir(workdir / "constant"), Workdir(workdir / "run")
    if final.config.exists():  # an earlier call was stopped in its decay
        stored = json.loads(final.config.read_bytes())
        config = replace(config, steps=stored["steps"], decay_steps=stored["decay_steps"])
    else:
        config = _constant_part(config, constant, final, start=start)
    teacher = distill_teacher(config, final.path)
    file = final.path / "teacher.safetensors"
    save_teacher(file, teacher)
    loss = teacher.record["held_out_loss"]
    print(f"{config.steps} steps in {time.time() - start:.0f} s, held-out loss {loss}: {file}")
    return 0


def _constant_part(
    config: DistillationConfig, constant: Workdir, final: Workdir, *, start: float
) -> DistillationConfig:
    """Makes the steps at the constant rate, and the work directory `final` for those of the decay.

    Returns:
      The configuration with as many steps of decay as the time that is left has.
    """
    constant_steps = config.steps - config.decay_steps
    seconds = 60 * _MINUTES.value * constant_steps / config.steps
    step = _distill_for(_with_steps(config, constant_steps, 0), constant.path, seconds)
    if step < constant_steps:
        measured = rate_between_checkpoints(constant.checkpoints, start)
        if measured is None:
            raise InputError(
                f"--minutes={_MINUTES.value}: one checkpoint, of step {step}, expected at least "
                "two; give more minutes or a lower config.steps_per_round"
            )
        rate, start_seconds = measured
        left = _PLANNED * (start + 60 * _MINUTES.value - time.time() - start_seconds)
        decay = max(1, int(rate * left))
        print(f"{rate:.1f} steps/s: {step} steps, then {decay} of decay", flush=True)
        config = _with_steps(config, step, decay)
    shutil.rmtree(final.path, ignore_errors=True)
    final.path.mkdir()
    shutil.copytree(constant.checkpoints / str(step), final.checkpoints / str(step))
    shutil.copy(constant.path / PROJECTION, final.path)
    write_atomically(final.config, json.dumps(as_dict(config)).encode())
    return config


def _with_steps(config: DistillationConfig, constant: int, decay: int) -> DistillationConfig:
    """The configuration with other numbers of steps before the decay and during it."""
    return replace(config, steps=constant + decay, decay_steps=decay)


def _distill_for(config: DistillationConfig, workdir: Path, seconds: float) -> int:
    """Makes the steps that fit into `seconds`; returns their number.

    Raises:
      InputError: the time was over before the first step.
    """
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    try:
        distill_teacher(config, workdir)
    except StoppedError as stopped:
        return stopped.step or 0
    except SystemExit as ended:  # by a signal before the steps began
        if timer.is_alive():  # not that of the timer
            raise
        raise InputError(
            f"--minutes={_MINUTES.value}: the {seconds:.0f} seconds for the constant rate were "
            "over before its first step; give more minutes"
        ) from ended
    finally:
        timer.cancel()
    return config.steps


if __name__ == "__main__":
    run(main)

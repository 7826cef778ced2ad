"""Distills a teacher within a given time, with as many steps of the configuration as fit.

    python -m experiments.distill_within --config=configs/distill_gpu.py:small \
        --config.images=PHOTOGRAPHS --workdir=runs/gpu_small --minutes=4

Two short runs measure the time of a step and of a start. The actual run then has as many steps as
fit into the remaining time, including the decay of the learning rate, and at most `config.steps`.
This is for a machine that is available only for some minutes. The teacher is saved as
`WORKDIR/run/teacher.safetensors`.
"""

import time
from dataclasses import replace
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from efficientad_jax.config import DistillationConfig, read_distillation
from efficientad_jax.distillation.loop import distill_teacher
from efficientad_jax.networks.teacher import save_teacher
from experiments import run

_CONFIG = config_flags.DEFINE_config_file("config")
flags.mark_flag_as_required("config")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder for the runs", required=True)
_MINUTES = flags.DEFINE_float(
    "minutes", None, "time limit, in minutes", required=True, lower_bound=0
)

# Steps of the two short runs.
_SHORT, _LONGER = 20, 220
# Fraction of the time that is used: rates vary, and the decay at the end must not be lost.
_PLANNED = 0.9


def main() -> int:
    """Measures, plans, distills."""
    deadline = time.monotonic() + 60 * _MINUTES.value
    workdir = Path(_WORKDIR.value)
    config = read_distillation(_CONFIG.value)
    short, longer = (_with_steps(config, min(n, config.steps)) for n in (_SHORT, _LONGER))
    first, second = (_seconds(short, workdir / "short"), _seconds(longer, workdir / "longer"))
    per_step = max(second - first, 1e-3) / max(longer.steps - short.steps, 1)
    left = _PLANNED * (deadline - time.monotonic()) - first
    steps = int(min(max(left / per_step, longer.steps), config.steps))
    print(f"{1 / per_step:.1f} steps/s, {first:.0f} s to start: {steps} steps", flush=True)
    teacher = distill_teacher(_with_steps(config, steps), workdir / "run")
    file = workdir / "run" / "teacher.safetensors"
    save_teacher(file, teacher)
    print(f"held-out loss {teacher.record['held_out_loss']}: {file}")
    return 0


def _with_steps(config: DistillationConfig, steps: int) -> DistillationConfig:
    """The configuration with other `steps`, and a decay over the same fraction of them."""
    decay = round(config.decay_steps * steps / config.steps)
    return replace(config, steps=steps, decay_steps=decay)


def _seconds(config: DistillationConfig, workdir: Path) -> float:
    start = time.monotonic()
    distill_teacher(config, workdir)
    return time.monotonic() - start


if __name__ == "__main__":
    run(main)

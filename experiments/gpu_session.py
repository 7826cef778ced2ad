"""Uses a GPU that is rented for minutes: a teacher, latencies, and trainings as in the paper.

    python -m experiments.gpu_session --photographs=PHOTOGRAPHS \
        --dataset=pill=FOLDER --dataset=tile=FOLDER --workdir=runs/gpu --minutes=14

Its stages come in this order, each in a process of its own with a part of the minutes:

1. `teacher`: distills a PDN-M, with `configs/distill_gpu.py`.
2. `latency`: detection of S and M with 1, 8 and 16 images, next to PyTorch and ONNX Runtime.
3. the training of `configs/paper.py` on each dataset, in the minutes that are left.

Distillation and trainings save a checkpoint when their time is over, and the same command
continues them. Latencies that were measured are kept, and measured again. `WORKDIR/done` has a file
for each stage that is done. `--steps=20 --rounds=1` tries all of it on a CPU. The exit status is 1
if a stage failed.
"""

import sys
from pathlib import Path

from absl import flags

from efficientad_jax.errors import InputError
from efficientad_jax.scheduling.stages import Stage, run_stages
from experiments import run

_PHOTOGRAPHS = flags.DEFINE_string(
    "photographs", None, "folder of photographs, for the teacher and the penalty", required=True
)
_DATASETS = flags.DEFINE_multi_string("dataset", [], "NAME=FOLDER in MVTec AD's layout")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder for the results", required=True)
_MINUTES = flags.DEFINE_float("minutes", None, "time for all stages", 0.1, required=True)
_STEPS = flags.DEFINE_integer("steps", 0, "steps of each training; 0: those of its recipe", 0)
_ROUNDS = flags.DEFINE_integer("rounds", 15, "rounds of the latencies", 1)

# Parts of all minutes.
_TEACHER, _LATENCY = 0.45, 0.2


def main() -> int:
    """Runs the stages and prints what became of each."""
    workdir = Path(_WORKDIR.value).expanduser().absolute()
    outcomes = run_stages(_stages(workdir), workdir, 60 * _MINUTES.value)
    for name, outcome in outcomes.items():
        print(f"{name:16} {outcome}")
    return int("failed" in outcomes.values())


def _stages(workdir: Path) -> list[Stage]:
    """All stages, in their order.

    Raises:
      InputError: a dataset has no name.
    """
    total = 60 * _MINUTES.value
    steps = _STEPS.value
    teacher = [
        *_module("distill_within", "distill_gpu.py:medium"),
        f"--config.images={_PHOTOGRAPHS.value}",
        f"--minutes={_TEACHER * _MINUTES.value}",
        f"--workdir={workdir / 'teacher'}",
    ]
    if steps:
        teacher += [f"--config.steps={steps}", f"--config.decay_steps={steps // 2}"]
        teacher += ["--config.warmup_steps=1", "--config.steps_per_dispatch=1"]
    latency = [
        *_module("benchmark"),
        *(f"--batch={count}" for count in (1, 8, 16)),
        "--dtype=bfloat16",
        "--nostart_up",
        f"--rounds={_ROUNDS.value}",
        f"--output={workdir / 'latency'}",
    ]
    stages = [
        # The command keeps to the minutes itself, or nearly so.
        Stage("teacher", teacher, _TEACHER * total + 60),
        Stage("latency", latency, _LATENCY * total),
    ]
    share = (1 - _TEACHER - _LATENCY) / max(1, len(_DATASETS.value))
    for dataset in _DATASETS.value:
        name, _, folder = dataset.partition("=")
        if not folder:
            raise InputError(f"--dataset={dataset}: expected NAME=FOLDER, as in pill=data/pill")
        arguments = [f"--config.dataset.root={folder}", f"--workdir={workdir / name}"]
        arguments += [f"--config.pretraining_images={_PHOTOGRAPHS.value}"]
        arguments += [f"--config.train.steps={steps}"] if steps else []
        stages.append(Stage(name, _module("train", "paper.py") + arguments, share * total))
    return stages


def _module(name: str, config: str = "") -> list[str]:
    flag = [f"--config=configs/{config}"] if config else []
    return [sys.executable, "-m", f"experiments.{name}", *flag]


if __name__ == "__main__":
    run(main)

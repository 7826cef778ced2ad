"""Phase 1: distills a teacher. See the configurations `configs/distill_*.py` for the commands.

It uses all devices of the machine. On several hosts, run the same command on each, with a --workdir
that all of them can access and, under SLURM, Open MPI or on a TPU pod,

    --coordinator=auto

or anywhere

    --coordinator=HOST:PORT --processes=N --process=I
"""

from absl import flags
from ml_collections import config_flags

from efficientad_jax.config import read_distillation
from efficientad_jax.distillation.loop import distill_teacher
from efficientad_jax.errors import InputError
from efficientad_jax.networks.teacher import save_teacher
from efficientad_jax.runs.processes import is_first_process, join_processes
from efficientad_jax.runs.profile import steps_to_profile
from efficientad_jax.runs.remote import local_workdir
from experiments import run

_CONFIG = config_flags.DEFINE_config_file("config")
flags.mark_flag_as_required("config")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "folder for checkpoints and the teacher", required=True
)
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, or 'auto'")
_PROCESSES = flags.DEFINE_integer("processes", 1, "number of processes")
_PROCESS = flags.DEFINE_integer("process", 0, "index of this process, from 0")
_PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps", "", "FIRST,LAST: steps to record for TensorBoard's or XProf's profiler"
)


def main() -> int:
    """Distills and writes `teacher.safetensors` into the work directory."""
    config = read_distillation(_CONFIG.value)
    profile_steps = steps_to_profile(_PROFILE_STEPS.value)
    join_processes(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    if _COORDINATOR.value and "://" in _WORKDIR.value:
        raise InputError(
            f"--workdir={_WORKDIR.value}: several processes need a folder that all of them see"
        )
    with local_workdir(_WORKDIR.value) as workdir:
        teacher = distill_teacher(config, workdir, profile_steps=profile_steps)
        if is_first_process():
            save_teacher(workdir / "teacher.safetensors", teacher)
    if is_first_process():
        file = f"{_WORKDIR.value}/teacher.safetensors"
        print(f"held-out loss {teacher.record['held_out_loss']}: {file}")
    return 0


if __name__ == "__main__":
    run(main)

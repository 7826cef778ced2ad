"""Phase 1: distils a teacher. See the configurations `configs/distill_*.py` for the commands."""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from efficientad_jax.data.files import list_images
from efficientad_jax.distillation_loop import distil_teacher
from efficientad_jax.errors import InputError
from efficientad_jax.teacher import save_teacher
from efficientad_jax.workdir import claim_workdir
from experiments import STOPPED, run

_CONFIG = config_flags.DEFINE_config_file("config")
flags.mark_flag_as_required("config")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "folder for checkpoints and the teacher", required=True
)


def main(argv: list[str]) -> int:
    """Distils and writes `teacher.safetensors` into the work directory."""
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r}: expected flags alone")
    config = _CONFIG.value
    files = list_images(Path(config.images))
    workdir = claim_workdir(Path(_WORKDIR.value), config)
    teacher = distil_teacher(config, files, workdir)
    if teacher is None:
        print(f"stopped; the same command goes on from the checkpoint in {workdir}")
        return STOPPED
    save_teacher(workdir / "teacher.safetensors", teacher)
    print(f"held-out loss {teacher.record['held_out_loss']}: {workdir / 'teacher.safetensors'}")
    return 0


if __name__ == "__main__":
    run(main)

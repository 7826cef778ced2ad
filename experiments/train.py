"""Trains and calibrates a detector (phases 2 and 3). The files in `configs/` give the commands."""

from absl import flags
from ml_collections import config_flags

from efficientad_jax.config import read_config
from efficientad_jax.data.loading import load_configured_dataset
from efficientad_jax.fitting.fit_detector import fit_detector
from efficientad_jax.fitting.puad_summary import puad_summary
from efficientad_jax.runs.profile import steps_to_profile
from efficientad_jax.runs.remote import local_workdir
from efficientad_jax.runs.tracking import tracking
from efficientad_jax.runs.workdir import Workdir, as_started
from experiments import run

_CONFIG = config_flags.DEFINE_config_file("config")
flags.mark_flag_as_required("config")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "folder for checkpoints and the detector", required=True
)
_PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps", "", "FIRST,LAST: steps to record for TensorBoard's or XProf's profiler"
)
_MLFLOW = flags.DEFINE_string(
    "mlflow", "", "MLflow server to track the training in: http://... or sqlite:///mlflow.db"
)


def main() -> int:
    """Trains, or resumes an earlier run of the same work directory."""
    config = read_config(_CONFIG.value)
    profile_steps = steps_to_profile(_PROFILE_STEPS.value)
    with local_workdir(_WORKDIR.value) as workdir:
        config = as_started(config, workdir)
        dataset = load_configured_dataset(config)
        with tracking(_MLFLOW.value, workdir):
            detector = fit_detector(config, dataset, workdir, profile_steps=profile_steps)
    if detector.puad is not None:
        print(f"PUAD {puad_summary(detector)}")
    print(f"detector: {_WORKDIR.value}/{Workdir(workdir).detector.name}")
    return 0


if __name__ == "__main__":
    run(main)

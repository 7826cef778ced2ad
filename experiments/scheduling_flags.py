"""The flags of commands that run many trainings: see docs/sweep.md."""

from pathlib import Path

from absl import flags

from efficientad_jax.errors import InputError
from efficientad_jax.scheduling.job import Demand

ADDRESS = flags.DEFINE_string(
    "address", "", "Ray cluster: HOST:PORT, or 'auto'; default: RAY_ADDRESS, or only this machine"
)
FEATURE_CACHE_GB = flags.DEFINE_float(
    "feature_cache_gb", 20.0, "teacher features kept on each machine's disk; 0: none", 0.0
)
_CPUS = flags.DEFINE_integer("cpus_per_training", None, "cores of a training", 1)
_GPUS = flags.DEFINE_float("gpus_per_training", None, "GPUs of a training, such as 0.5", 0.0)
_TPUS = flags.DEFINE_integer("tpus_per_training", None, "TPU chips of a training", 0)


def shared_folder(flag: str, folder: str) -> Path:
    """The absolute path of a folder that all machines of a cluster see.

    Raises:
      InputError: it is an address and not a path.
    """
    if "://" in folder:
        raise InputError(f"--{flag}={folder}: many trainings need a folder that all machines see")
    return Path(folder).absolute()


def demand() -> Demand:
    """The devices of each training."""
    return Demand(_CPUS.value, _GPUS.value, _TPUS.value)

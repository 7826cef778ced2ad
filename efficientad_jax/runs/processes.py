"""Several processes as one program: how they find each other and agree.

Each process runs the same command on its own host and devices.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils

from efficientad_jax.errors import InputError, first_line


def join_processes(coordinator: str, processes: int, process: int) -> None:
    """Connects this process with the others; to be called before anything else uses a device.

    Args:
      coordinator: HOST:PORT of process 0, or 'auto' where the environment tells it: SLURM, Open
        MPI, TPU pods and Kubernetes. With '' there is no other process and nothing is done.
      processes: how many there are; not read for 'auto'.
      process: which of them this is, from 0; not read for 'auto'.

    Raises:
      InputError: the numbers do not fit, or no connection came about.
    """
    if not coordinator:
        return
    if coordinator != "auto" and not 0 <= process < processes:
        raise InputError(
            f"--process={process} of --processes={processes}: expected a number from 0 to "
            "--processes - 1"
        )
    try:
        if coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(coordinator, processes, process)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"--coordinator={coordinator}: cannot join ({first_line(error)})"
        ) from error


def is_first_process() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def wait_for_processes(name: str) -> None:
    """Returns once every process has come to the point of this name."""
    multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Whether the flag holds in any process: all get the same answer, so all can act on it."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))

"""Runs several processes as one JAX program: connects and synchronizes them.

Each process runs the same command with the devices of its host.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils

from efficientad_jax.errors import InputError, first_line


def join_processes(coordinator: str, processes: int, process: int) -> None:
    """Connects this process to the others; call it before anything uses a device.

    Args:
      coordinator: HOST:PORT of process 0. 'auto' reads it from the environment of SLURM, Open MPI,
        TPU pods or Kubernetes. With '' there is only this process and nothing is done.
      processes: number of processes; ignored for 'auto'.
      process: index of this process, from 0; ignored for 'auto'.

    Raises:
      InputError: the index is out of range, or the connection failed.
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
    """Whether this is process 0, which writes the files that all processes share."""
    return jax.process_index() == 0


def wait_for_processes(name: str) -> None:
    """Returns when every process has called this with the same name."""
    multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Whether the flag is True in any process; all processes get the same result."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))

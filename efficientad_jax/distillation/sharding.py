"""How a batch is divided among the devices of all processes, and what all of them hold alike."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import PyTree

from efficientad_jax.errors import InputError


def share_of_batch(batch_size: int) -> slice:
    """Which rows of every batch are for the devices of this process.

    Raises:
      InputError: the batch cannot be divided among the devices.
    """
    devices = jax.device_count()
    if batch_size % devices:
        raise InputError(
            f"config.batch_size = {batch_size}: cannot be divided among {devices} devices; "
            f"give a multiple of {devices}"
        )
    rows = batch_size // jax.process_count()
    return slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)


def to_devices(batches: Sequence[np.ndarray]) -> np.ndarray:
    """This process's rows `[n, ...]` of some steps as `[devices, steps, n // devices, ...]`."""
    stacked = np.stack(batches)
    devices = jax.local_device_count()
    steps, rows = stacked.shape[:2]
    split = stacked.reshape(steps, devices, rows // devices, *stacked.shape[2:])
    return np.ascontiguousarray(split.swapaxes(0, 1))


def one_of(replicated: PyTree) -> PyTree:
    """The first device's copy of what every device holds, in the host's memory."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], replicated)

"""How a batch is divided among the devices of all processes. The only user of `jax.pmap` here.

Every device holds a copy (replica) of the parameters and gets an equal share of each batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax.jax_utils import replicate as _replicate
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, PyTree

from efficientad_jax.errors import InputError

_AXIS = "devices"


def on_all_devices(
    static: tuple[int, ...], donated: tuple[int, ...] = (), *, same_result: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a function that every device of every process runs on its share of the arguments.

    Arguments must be positional; arrays have a leading axis of the devices of this process.

    Args:
      static: positions of arguments that are not arrays.
      donated: positions of arguments whose memory the results may take.
      same_result: whether the results are the same on all devices; they then have no leading axis.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.pmap(
            function,
            axis_name=_AXIS,
            static_broadcasted_argnums=static,
            donate_argnums=donated,
            out_axes=None if same_result else 0,  # pyright: ignore[reportArgumentType]
        )

    return decorate


def trace_on_devices(
    function: Callable[..., Any],
    devices: Sequence[Any],
    arguments: tuple[PyTree, ...],
    *,
    donated: tuple[int, ...] = (),
) -> jax.stages.Traced:
    """Traces what `on_all_devices` would run, for devices that need not be there.

    Args:
      function: of arrays, as each device sees them.
      devices: of all processes together.
      arguments: abstract arrays as one device sees them.
      donated: positions of arguments whose memory the results may take.
    """
    mesh = Mesh(np.asarray(devices), (_AXIS,))
    spec = PartitionSpec(_AXIS)

    def on_device(*shares: PyTree) -> PyTree:
        results = function(*jax.tree.map(lambda x: x[0], shares))
        return jax.tree.map(lambda x: x[None], results)

    def divided(leaf: Any) -> jax.ShapeDtypeStruct:
        shape = (len(devices), *leaf.shape)
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    mapped = jax.shard_map(on_device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return jax.jit(mapped, donate_argnums=donated).trace(*jax.tree.map(divided, arguments))


def mean_over_devices(tree: PyTree) -> PyTree:
    """Inside `on_all_devices`: the mean of arrays over all devices."""
    return jax.lax.pmean(tree, _AXIS)


def gather_from_devices(tree: PyTree) -> PyTree:
    """Inside `on_all_devices`: the arrays of all devices, concatenated along their first axis."""
    return jax.lax.all_gather(tree, _AXIS, tiled=True)


def replicate(tree: PyTree) -> PyTree:
    """Copies arrays to every device of this process."""
    return _replicate(tree)


def copy_to_devices(arrays: PyTree) -> PyTree:
    """Copies each row of arrays `[devices, ...]` to a device of this process."""
    return _identity(arrays)


@on_all_devices(static=())
def _identity(arrays: PyTree) -> PyTree:
    return arrays


def first_replica(replicated: PyTree) -> PyTree:
    """The first device's copy of replicated arrays, as NumPy arrays."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], replicated)


def local_rows(batch_size: int) -> slice:
    """The rows of every batch that the devices of this process get.

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


def shard_batches(batches: Sequence[np.ndarray]) -> np.ndarray:
    """This process's rows `[n, ...]` of several steps as `[devices, steps, n // devices, ...]`."""
    stacked = np.stack(batches)
    devices = jax.local_device_count()
    steps, rows = stacked.shape[:2]
    split = stacked.reshape(steps, devices, rows // devices, *stacked.shape[2:])
    return np.ascontiguousarray(split.swapaxes(0, 1))


def local_view_ids(ids: Int[np.ndarray, " n"]) -> Int[np.ndarray, "batches devices"]:
    """Divides views among the devices of all processes; returns those of this process.

    Each batch has one view per device. The last batch is padded with the last view.
    """
    devices = jax.device_count()
    padded = np.pad(ids, (0, -len(ids) % devices), mode="edge") if len(ids) else ids
    first = jax.process_index() * jax.local_device_count()
    return padded.reshape(-1, devices)[:, first : first + jax.local_device_count()]

"""Checkpoints of a run and the arrays of a detector, by orbax: the only module that imports it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree


class Checkpoints:
    """The checkpoints of one run, newest last; made by `open_checkpoints`."""

    def __init__(self, manager: ocp.CheckpointManager) -> None:
        self._manager = manager

    def save(self, step: int, state: PyTree) -> None:
        """Starts writing `state` as that of `step`, in the background."""
        if self._manager.latest_step() != step:
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore_latest(self, like: PyTree) -> PyTree | None:
        """The newest state, with the structure and shardings of `like`; None if there is none."""
        step = self._manager.latest_step()
        return None if step is None else self.restore(step, like)

    def restore(self, step: int, like: PyTree) -> PyTree:
        """The state of one of `steps`, as `restore_latest` gives the newest."""
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract(like)))

    @property
    def steps(self) -> list[int]:
        """Of which there are checkpoints, in ascending order."""
        return sorted(self._manager.all_steps())


@contextmanager
def open_checkpoints(folder: Path, keep: int = 2) -> Iterator[Checkpoints]:
    """Opens (and makes) a folder of checkpoints; on leaving, waits until all is on disk.

    Args:
      folder: an absolute path.
      keep: how many of the newest are kept.
    """
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    with ocp.CheckpointManager(folder, options=options) as manager:
        yield Checkpoints(manager)
        manager.wait_until_finished()


def abstract(tree: PyTree) -> PyTree:
    """Shapes, dtypes and shardings in place of arrays."""
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def save_arrays(folder: Path, arrays: PyTree) -> None:
    """Writes a pytree of arrays to a folder, replacing what is there, and waits."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, arrays, force=True)


def load_arrays(folder: Path, like: PyTree) -> PyTree:
    """Reads what `save_arrays` wrote; `like` holds arrays or their shapes and dtypes."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder, like)

"""Checkpoints of a run, by orbax; no other module imports it.

A checkpoint is written completely or not at all. It holds a state and a digest of the state's
values, which detects damage on disk in any part of the checkpoint.
"""

import gc
import hashlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from efficientad_jax.errors import DivergenceError, InputError, first_line
from efficientad_jax.runs.processes import is_first_process, wait_for_processes

_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run; use `open_checkpoints` to create it."""

    def __init__(self, folder: Path, manager: ocp.CheckpointManager) -> None:
        self._folder = folder
        self._manager = manager

    def save(self, step: int, state: PyTree, loss: float) -> None:
        """Starts writing the state after `step` steps, in the background.

        Args:
          step: number of steps done. If its checkpoint exists, nothing is written.
          state: a tree of arrays.
          loss: the checkpoint with the lowest loss is kept as the best one.

        Raises:
          DivergenceError: an array is not finite; earlier checkpoints are kept.
          InputError: this checkpoint or the previous one cannot be written.
        """
        if self._manager.latest_step() == step:
            return
        _check_finite(state, step)
        record = {"step": step, "sha256": _digest(state)}
        with _writing(self._folder):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
                ),
                metrics={"loss": float(loss)},
            )

    def restore_latest(self, like: PyTree) -> PyTree | None:
        """Restores the newest intact state, in the structure and shardings of `like`.

        Newer checkpoints that are damaged are reported in a warning and renamed to 'damaged-...',
        as the run will write checkpoints of these steps again.

        Returns:
          The state; None if there are no checkpoints.

        Raises:
          InputError: there are checkpoints, but all of them are damaged.
        """
        with _without_abandoned_reads():
            state, damaged = self._newest_intact(like)
            if damaged:
                gc.collect()
        if state is None and damaged:
            step, reason = next(iter(damaged.items()))
            raise InputError(
                f"checkpoint {self._folder / str(step)}: damaged ({reason}), and no earlier "
                f"one is intact; remove {self._folder} to start again from step 0"
            )
        for step, reason in damaged.items():
            file = self._folder / str(step)
            _log.warning("checkpoint %s: damaged (%s); resuming from an earlier one", file, reason)
        self._rename_damaged(list(damaged))
        return state

    def restore(self, step: int, like: PyTree) -> PyTree:
        """Restores the state of one of `steps`, in the structure and shardings of `like`.

        Raises:
          ValueError: its values differ from those that were saved. Orbax raises many other types
            of exceptions for damaged files.
        """
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(_abstract(like)),
                record=ocp.args.JsonRestore(),
            ),
        )
        record: Any = restored["record"]
        if record.get("step") != step or record.get("sha256") != _digest(restored["state"]):
            raise ValueError("its values differ from those that were saved")
        return restored["state"]

    def _newest_intact(self, like: PyTree) -> tuple[PyTree | None, dict[int, str]]:
        """Returns the newest intact state, and by step the errors of newer checkpoints."""
        damaged = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self.restore(step, like), damaged
            except Exception as error:  # orbax raises many types for damaged files
                damaged[step] = first_line(error)
        return None, damaged

    def _rename_damaged(self, steps: list[int]) -> None:
        if not steps:
            return
        if is_first_process():
            for step in steps:
                source, number = self._folder / str(step), 0
                while (target := self._folder / f"damaged-{step}-{number}").exists():
                    number += 1
                source.rename(target)
        wait_for_processes("damaged checkpoints renamed")
        self._manager.reload()

    @property
    def steps(self) -> list[int]:
        """Steps for which there is a checkpoint, in ascending order."""
        return sorted(self._manager.all_steps())


@contextmanager
def open_checkpoints(folder: Path, keep: int = 2) -> Iterator[Checkpoints]:
    """Opens a folder of checkpoints and creates it if needed; on exit, waits for all writes.

    Args:
      folder: an absolute path.
      keep: how many of the newest checkpoints to keep, in addition to the one with the lowest loss.

    Raises:
      InputError: the folder or a checkpoint cannot be written.
    """
    best = BestN(get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=1)
    options = ocp.CheckpointManagerOptions(
        create=False,  # the folder is created below
        cleanup_tmp_directories=True,  # incomplete checkpoints of a killed run
        preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
    )
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        manager = ocp.CheckpointManager(folder, options=options)
    try:
        yield Checkpoints(folder, manager)
    finally:
        with _writing(folder):
            manager.wait_until_finished()
            manager.close()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns the errors of orbax's writing threads into an `InputError` of one line."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"checkpoints {folder}: cannot be written ({first_line(error)}); "
            "earlier checkpoints are kept"
        ) from error


@contextmanager
def _without_abandoned_reads() -> Iterator[None]:
    """Suppresses the tracebacks of reads that orbax abandons when another read fails."""
    asyncio_log, hook = logging.getLogger("asyncio"), sys.unraisablehook
    before = asyncio_log.disabled

    def keep_signals(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, Exception):
            hook(unraisable)

    asyncio_log.disabled, sys.unraisablehook = True, keep_signals
    try:
        yield
    finally:
        asyncio_log.disabled, sys.unraisablehook = before, hook


def _abstract(tree: PyTree) -> PyTree:
    """Replaces arrays by their shapes, dtypes and shardings."""
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def _digest(tree: PyTree) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _check_finite(tree: PyTree, step: int) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DivergenceError(
                f"training: {jax.tree_util.keystr(path)} of the state after step {step} is not "
                "finite; the last checkpoint is kept; try a lower learning rate"
            )

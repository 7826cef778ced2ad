"""Checkpoints of a run, by orbax; no other module imports it.

A checkpoint is written completely or not at all. It holds a state, notes of the run and a digest of
both, which detects damage on disk in any part of the checkpoint.
"""

import gc
import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
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

    def save(
        self,
        step: int,
        state: PyTree,
        loss: float,
        *,
        notes: Mapping[str, float] | None = None,
        kept_step: int | None = None,
    ) -> None:
        """Starts writing the state after `step` steps, in the background.

        Args:
          step: number of steps done. If its checkpoint exists, nothing is written.
          state: a tree of arrays.
          loss: the checkpoint with the lowest loss is kept as the best one.
          notes: finite numbers that `notes` returns; None for none.
          kept_step: of a checkpoint, which may be this one, that is kept as long as the newest
            checkpoint names it; None for none.

        Raises:
          DivergenceError: an array is not finite; earlier checkpoints are kept.
          InputError: this checkpoint or the previous one cannot be written.
        """
        if self._manager.latest_step() == step:
            return
        _check_finite(state, step)
        record: dict[str, Any] = {"step": step, "sha256": _digest(state, notes)}
        if notes:
            record["notes"] = dict(notes)
        metrics: dict[str, float] = {"loss": float(loss)}
        if kept_step is not None:
            metrics["kept_step"] = kept_step
        with _writing(self._folder):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
                ),
                metrics=metrics,
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
        digest = _digest(restored["state"], record.get("notes"))
        if record.get("step") != step or record.get("sha256") != digest:
            raise ValueError("its values differ from those that were saved")
        return restored["state"]

    def restore_kept(self, step: int, like: PyTree) -> PyTree:
        """Restores the state of a `kept_step` as `restore` does, after all writes are done.

        Raises:
          InputError: it is missing or damaged, or a checkpoint cannot be written.
        """
        with _writing(self._folder):
            self._manager.wait_until_finished()
        try:
            with _without_abandoned_reads():
                return self.restore(step, like)
        except Exception as error:  # orbax raises many types for damaged files
            raise InputError(
                f"checkpoint {self._folder / str(step)}: damaged or missing ({first_line(error)}), "
                "but its state is the best one, which becomes the detector; remove "
                f"{self._folder} to train again from step 0"
            ) from error

    def notes(self, step: int) -> dict[str, float]:
        """The notes of one of `steps`, which was restored before; empty if it has none."""
        restored = self._manager.restore(
            step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
        )
        record: Any = restored["record"]
        return record.get("notes") or {}

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
      keep: how many of the newest checkpoints to keep, in addition to the one with the lowest loss
        and to the `kept_step` of the newest.

    Raises:
      InputError: the folder or a checkpoint cannot be written.
    """
    best = BestN(get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=1)
    options = ocp.CheckpointManagerOptions(
        create=False,  # the folder is created below
        cleanup_tmp_directories=True,  # incomplete checkpoints of a killed run
        preservation_policy=AnyPreservationPolicy([LatestN(keep), best, _Kept()]),
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


def rate_between_checkpoints(folder: Path, start: float) -> tuple[float, float] | None:
    """How fast a run was, by the times of its checkpoints.

    Args:
      folder: of the checkpoints.
      start: time at which the process started, in seconds since the epoch.

    Returns:
      Steps per second, and seconds from `start` to the first step; None with fewer than two
      checkpoints.
    """
    saved = sorted((int(p.name), p.stat().st_mtime) for p in folder.iterdir() if p.name.isdecimal())
    if len(saved) < 2:
        return None
    (first, first_time), (last, last_time) = saved[0], saved[-1]
    rate = (last - first) / (last_time - first_time)
    return rate, max(0.0, first_time - start - first / rate)


class _Kept:
    """Preserves the checkpoint that the newest one names as its `kept_step`."""

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Whether to preserve each of the checkpoints, which are in ascending order."""
        newest = checkpoints[-1].metrics if checkpoints else None
        kept_step = (newest or {}).get("kept_step")
        return [checkpoint.step == kept_step for checkpoint in checkpoints]


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


def _digest(tree: PyTree, notes: Mapping[str, float] | None) -> str:
    digest = hashlib.sha256(json.dumps(dict(notes), sort_keys=True).encode() if notes else b"")
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

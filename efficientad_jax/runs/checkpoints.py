"""Checkpoints of a run, by orbax: the only module that imports it.

Each holds its state, whole or not at all, and a digest of the state's values: bytes that were
damaged on disk are told from what was saved, whatever part of the checkpoint they belong to.
"""

import gc
import hashlib
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN
from orbax.checkpoint.options import AsyncOptions, MultiprocessingOptions

from efficientad_jax.errors import DivergenceError, InputError, first_line
from efficientad_jax.runs.processes import is_first_process, wait_for_processes

_log = logging.getLogger(__name__)

_TURN = threading.Lock()  # of runs beside others: see `open_checkpoints`


class Checkpoints:
    """The checkpoints of one run, newest last; made by `open_checkpoints`."""

    def __init__(self, folder: Path, manager: ocp.CheckpointManager, beside_others: bool) -> None:
        self._folder = folder
        self._manager = manager
        self._beside_others = beside_others

    def save(self, step: int, state: PyTree, loss: float) -> None:
        """Starts writing `state` as that of `step`, in the background.

        Args:
          step: how many steps are done. Nothing is written if its checkpoint is there.
          state: arrays.
          loss: by which the best checkpoint is told; the lower, the better.

        Raises:
          DivergenceError: an array is not finite; what is saved stays.
          InputError: this checkpoint or the one before it cannot be written.
        """
        if self._manager.latest_step() == step:
            return
        state = self._as_kept(state)
        _check_finite(state, step)
        record = {"step": step, "sha256": _digest(state)}
        with _writing(self._folder), self._in_turn():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
                ),
                metrics={"loss": float(loss)},
            )
            if self._beside_others:
                self._manager.wait_until_finished()

    def restore_latest(self, like: PyTree) -> PyTree | None:
        """The newest state that is whole, in the structure and shardings of `like`, None for none.

        Damaged checkpoints that are newer are named in a warning and set aside, under names that
        begin with 'damaged', for another of that step may come.

        Raises:
          InputError: there are checkpoints, but every one of them is damaged.
        """
        with _without_abandoned_reads(), self._in_turn():
            state, damaged = self._newest_whole(like)
            if damaged:
                gc.collect()
        if state is None and damaged:
            step, reason = next(iter(damaged.items()))
            raise InputError(
                f"checkpoint {self._folder / str(step)}: damaged ({reason}), and there is no whole "
                f"one before it; remove {self._folder} to begin anew"
            )
        for step, reason in damaged.items():
            file = self._folder / str(step)
            _log.warning("checkpoint %s: damaged (%s); going on from one before it", file, reason)
        self._set_aside(list(damaged))
        return state

    def restore(self, step: int, like: PyTree) -> PyTree:
        """The state of one of `steps`, as `restore_latest` gives the newest.

        Raises:
          ValueError: its values are not those that were saved; orbax raises others.
        """
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(_abstract(self._as_kept(like))),
                record=ocp.args.JsonRestore(),
            ),
        )
        record: Any = restored["record"]
        if record.get("step") != step or record.get("sha256") != _digest(restored["state"]):
            raise ValueError("its values are not those that were saved")
        return restored["state"]

    def _as_kept(self, state: PyTree) -> PyTree:
        """Of several processes orbax takes no array that only one of them has, but NumPy's."""
        return jax.tree.map(np.asarray, state) if self._beside_others else state

    def _in_turn(self) -> AbstractContextManager[object]:
        return _TURN if self._beside_others else nullcontext()

    def _newest_whole(self, like: PyTree) -> tuple[PyTree | None, dict[int, str]]:
        """A state, and what is wrong with those that are newer, by step."""
        damaged = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self.restore(step, like), damaged
            except Exception as error:  # orbax raises almost anything on damaged files
                damaged[step] = first_line(error)
        return None, damaged

    def _set_aside(self, steps: list[int]) -> None:
        if not steps:
            return
        if self._beside_others or is_first_process():
            for step in steps:
                source, number = self._folder / str(step), 0
                while (target := self._folder / f"damaged-{step}-{number}").exists():
                    number += 1
                source.rename(target)
        if not self._beside_others:
            wait_for_processes("damaged checkpoints set aside")
        self._manager.reload()

    @property
    def steps(self) -> list[int]:
        """Of which there are checkpoints, in ascending order."""
        return sorted(self._manager.all_steps())


@contextmanager
def open_checkpoints(
    folder: Path, keep: int = 2, beside_others: bool = False
) -> Iterator[Checkpoints]:
    """Opens (and makes) a folder of checkpoints; on leaving, waits until all is on disk.

    Args:
      folder: an absolute path.
      keep: how many of the newest are kept; the one with the lowest loss is kept besides.
      beside_others: whether other runs, in this process or in others of the program, have
        checkpoints of their own: then this process alone reads and writes these, and a checkpoint
        is on disk when `save` returns, as orbax takes two in the making for one.

    Raises:
      InputError: the folder or a checkpoint cannot be written.
    """
    best = BestN(get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=1)
    options = ocp.CheckpointManagerOptions(
        create=False,  # the folder is made below
        cleanup_tmp_directories=True,  # what a run that was killed had not finished
        preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
        # Orbax tells threads of directories it has made by keys that all runs share.
        async_options=AsyncOptions(create_directories_asynchronously=not beside_others),
        multiprocessing_options=_of_this_process(folder)
        if beside_others
        else MultiprocessingOptions(),
    )
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        manager = ocp.CheckpointManager(folder, options=options)
    try:
        yield Checkpoints(folder, manager, beside_others)
    finally:
        with _writing(folder):
            manager.wait_until_finished()
            manager.close()


def _of_this_process(folder: Path) -> MultiprocessingOptions:
    """Orbax otherwise waits for every process of the program at each checkpoint."""
    index = jax.process_index()
    return MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"{index}-{folder}"
    )


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """What orbax raises where it cannot write, in one line; it comes from a thread of its own."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"checkpoints {folder}: cannot be written ({first_line(error)}); those before are kept"
        ) from error


@contextmanager
def _without_abandoned_reads() -> Iterator[None]:
    """Keeps Python from a traceback of each read that orbax abandons when one beside it fails."""
    asyncio_log, hook = logging.getLogger("asyncio"), sys.unraisablehook
    before = asyncio_log.disabled

    def signals_alone(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, Exception):
            hook(unraisable)

    asyncio_log.disabled, sys.unraisablehook = True, signals_alone
    try:
        yield
    finally:
        asyncio_log.disabled, sys.unraisablehook = before, hook


def _abstract(tree: PyTree) -> PyTree:
    """Shapes, dtypes and shardings in place of arrays."""
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

"""Yields the image files of a folder, each as soon as it has been written completely."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from efficientad_jax.data.files import find_images, is_data_folder, is_image
from efficientad_jax.errors import InputError

# Interval between two checks whether a file is complete.
_CHECK_INTERVAL_MS = 250


class Arrival(NamedTuple):
    """A version of a file.

    Attributes:
      path: of the file.
      modified_ns: time of its last modification, in nanoseconds since the epoch.
      size: in bytes.
    """

    path: Path
    modified_ns: int
    size: int


def completed_files(
    folder: Path,
    settle: float,
    seen: set[Arrival],
    *,
    stopped: Callable[[], bool],
    polling: bool = False,
) -> Iterator[Arrival]:
    """Yields the image files in a folder and its subfolders: those there now and those to come.

    A file counts as complete when its size and its time of modification have not changed for
    `settle` seconds. Each file is yielded once, and again whenever it is rewritten. The files that
    `list_images` leaves out are ignored.

    Args:
      folder: to watch.
      settle: time in seconds, at least 0.
      seen: arrivals that are not yielded.
      stopped: whether to end; called several times per second.
      polling: whether to poll the folder instead of relying on the operating system, which does
        not report the changes that other machines make to a network folder.

    Raises:
      InputError: the folder does not exist, cannot be read, or is removed.
    """
    yielded = set(seen)
    pending: dict[Path, tuple[Arrival | None, float]] = {}
    for candidates in _changed_images(folder, stopped, polling):
        for path in candidates:
            if not _is_ignored(path, folder):
                pending.setdefault(path, (None, 0.0))
        for arrival in _settled(pending, settle):
            if arrival not in yielded:
                yielded.add(arrival)
                yield arrival
            if stopped():
                return


def _changed_images(
    folder: Path, stopped: Callable[[], bool], polling: bool
) -> Iterator[list[Path]]:
    """Yields all files first, and then at each check those that have changed since the last one."""
    # `watchfiles` comes with the extra `watch`.
    from watchfiles import watch

    find_images(folder)  # Raises InputError where `watch` would raise errors of its own.

    class Stop:
        def is_set(self) -> bool:
            return bool(stopped())

    changes = watch(
        folder,
        watch_filter=None,
        debounce=2 * _CHECK_INTERVAL_MS,
        rust_timeout=_CHECK_INTERVAL_MS,
        yield_on_timeout=True,
        stop_event=Stop(),
        raise_interrupt=False,
        force_polling=polling or None,
    )
    # The existing files are listed after the watch has begun, so that no file is missed.
    is_first = True
    for changed in changes:
        if not folder.is_dir():
            raise InputError(
                f"image folder {folder}: is gone, expected it to exist during a watch; restore it "
                "and start the watch again"
            )
        yield find_images(folder) if is_first else _images_among([Path(p) for _, p in changed])
        is_first = False


def _images_among(changed: list[Path]) -> list[Path]:
    """The changed files, and the files of folders that were moved in."""
    images = []
    for path in changed:
        if path.is_dir():
            try:
                images += find_images(path)
            except InputError:
                continue  # It has been removed, or it is not readable.
        else:
            images.append(path)
    return images


def _is_ignored(path: Path, folder: Path) -> bool:
    folders = path.relative_to(folder).parts[:-1]
    return not is_image(path) or not all(map(is_data_folder, folders))


def _settled(pending: dict[Path, tuple[Arrival | None, float]], settle: float) -> list[Arrival]:
    """Removes the complete files from `pending`; returns them by time of modification."""
    now = time.monotonic()
    complete = []
    for path, (before, since) in list(pending.items()):
        try:
            status = os.stat(path)
        except OSError:
            del pending[path]  # The file was moved, or it is a broken link.
            continue
        arrival = Arrival(path, status.st_mtime_ns, status.st_size)
        if arrival != before:
            pending[path] = (arrival, now)
        elif now - since >= settle:
            del pending[path]
            complete.append(arrival)
    return sorted(complete, key=lambda arrival: (arrival.modified_ns, arrival.path))

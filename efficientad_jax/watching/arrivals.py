"""Files of a folder, each once it has been completely written."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from efficientad_jax.data.files import find_images, is_image
from efficientad_jax.detection.heatmap import PICTURE_SUFFIX
from efficientad_jax.errors import InputError

# How often what is not yet known to be complete is looked at.
_LOOK_MS = 250


class Arrival(NamedTuple):
    """A file as it was found.

    Attributes:
      path: of the file.
      modified_ns: when it was last written to.
      size: in bytes.
    """

    path: Path
    modified_ns: int
    size: int


def completed_files(
    folder: Path,
    settle: float,
    seen: set[Arrival],
    stopped: Callable[[], bool],
    polling: bool = False,
) -> Iterator[Arrival]:
    """Image files in a folder and those below it, now and as they come.

    A file counts as complete when its size and its time of writing have not changed for `settle`
    seconds. Each is given once, and once more if it is written anew. Hidden files and pictures of
    heat maps are passed over.

    Args:
      folder: to watch.
      settle: seconds, from 0.
      seen: arrivals not to be given again.
      stopped: whether to end; asked several times a second.
      polling: whether to look for changes instead of being told by the operating system, which
        is not told of what other machines write to a network folder.

    Raises:
      InputError: there is no such folder, it cannot be read, or it is gone.
    """
    # `watchfiles` comes with the extra `watch`.
    from watchfiles import watch

    find_images(folder)  # Complains of what `watch` would complain of in words of its own.
    seen = set(seen)
    pending: dict[Path, tuple[Arrival | None, float]] = {}

    class Stop:
        def is_set(self) -> bool:
            return bool(stopped())

    changes = watch(
        folder,
        watch_filter=None,
        debounce=2 * _LOOK_MS,
        rust_timeout=_LOOK_MS,
        yield_on_timeout=True,
        stop_event=Stop(),
        raise_interrupt=False,
        force_polling=polling or None,
    )
    # What was there before is looked for after the watch began: nothing falls in between.
    candidates = None
    for changed in changes:
        if not folder.is_dir():
            raise InputError(f"image folder {folder}: is gone")
        if candidates is None:
            candidates = find_images(folder)
        else:
            candidates = _images_among([Path(name) for _, name in changed])
        for path in candidates:
            if not _is_passed_over(path, folder):
                pending.setdefault(path, (None, 0.0))
        for arrival in _settled(pending, settle):
            if arrival not in seen:
                seen.add(arrival)
                yield arrival
            if stopped():
                return


def _images_among(changed: list[Path]) -> list[Path]:
    """Files that changed, and those in folders that were moved in."""
    found = []
    for path in changed:
        if path.is_dir():
            try:
                found += find_images(path)
            except InputError:
                continue  # It is gone already, or may not be read.
        else:
            found.append(path)
    return found


def _is_passed_over(path: Path, folder: Path) -> bool:
    inside = path.relative_to(folder).parts
    hidden = any(part.startswith(".") for part in inside)
    return hidden or not is_image(path) or path.name.endswith(PICTURE_SUFFIX)


def _settled(pending: dict[Path, tuple[Arrival | None, float]], settle: float) -> list[Arrival]:
    """Takes out of `pending` the files that are complete, in the order of their writing."""
    now = time.monotonic()
    complete = []
    for path, (before, since) in list(pending.items()):
        try:
            status = os.stat(path)
        except OSError:
            del pending[path]  # Moved on, or a link to nowhere.
            continue
        found = Arrival(path, status.st_mtime_ns, status.st_size)
        if found != before:
            pending[path] = (found, now)
        elif now - since >= settle:
            del pending[path]
            complete.append(found)
    return sorted(complete, key=lambda arrival: (arrival.modified_ns, arrival.path))

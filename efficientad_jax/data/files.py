"""Finding image files."""

import logging
import os
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from efficientad_jax.errors import InputError, printable

_log = logging.getLogger(__name__)

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


# The end of the names of the heat maps that this package writes next to images.
HEAT_MAP_SUFFIX = "_heatmap.png"

# Folders in which file servers and operating systems keep thumbnails and deleted files.
_SERVICE_FOLDERS = frozenset(
    {
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "@sharebin",
        "@tmp",
        "__macosx",
        "lost+found",
        "network trash folder",
        "recycler",
        "system volume information",
        "temporary items",
        "thumbs.db",
    }
)


def is_image(path: Path) -> bool:
    """Whether a file is an image by its name, and neither hidden nor a heat map of this package."""
    return (
        path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not is_heat_map(path)
    )


def is_heat_map(path: Path) -> bool:
    """Whether a file is a picture that this package wrote, by its name."""
    return path.name.endswith(HEAT_MAP_SUFFIX)


def is_data_folder(name: str) -> bool:
    """Whether a folder may hold images: it is neither hidden nor one of a file server's own."""
    return not name.startswith(".") and name.lower() not in _SERVICE_FOLDERS


def composed(name: str) -> str:
    """The name with each accented letter as one character.

    macOS and archives made there separate letters and accents, so that two names, such as those of
    an image and its mask, look the same and differ.
    """
    return unicodedata.normalize("NFC", name)


def find_images(folder: Path) -> list[Path]:
    """As `list_images`, but a folder may hold none.

    Raises:
      InputError: there is no such folder, or a folder in it cannot be read.
    """
    if not str(folder) or not folder.is_dir():
        raise InputError(f"image folder {str(folder)!r}: no such folder")
    found = []
    for parent, names in _folders_of(folder):
        _report_unknown_heat_maps(parent, names)
        found += filter(is_image, (Path(parent, name) for name in names))
    return sorted(found)


def holds_images(folder: Path) -> bool:
    """Whether `find_images` finds any; False for a folder that does not exist.

    Raises:
      InputError: a folder in it cannot be read.
    """
    if not folder.is_dir():
        return False
    return any(
        is_image(Path(parent, name)) for parent, names in _folders_of(folder) for name in names
    )


def _folders_of(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A folder and those below it that may hold images, with the names of their files.

    Linked folders come last, so that a folder which a link leads to as well keeps its own place.
    """
    visited = set()
    pending = [str(folder)]
    for start in pending:  # grows by the links that are found
        if os.path.realpath(start) in visited:
            _log.warning("image folder %s: links to a folder that is read already", start)
            continue
        for parent, folders, names in os.walk(start, onerror=_refuse):
            real = os.path.realpath(parent)
            if real in visited:
                folders.clear()
                continue
            visited.add(real)
            kept = sorted(filter(is_data_folder, folders))
            links = [name for name in kept if os.path.islink(os.path.join(parent, name))]
            pending += [os.path.join(parent, name) for name in links]
            folders[:] = [name for name in kept if name not in links]
            yield parent, names


def _report_unknown_heat_maps(folder: str, names: list[str]) -> None:
    """Warns of files that are left out for their name and lie next to no image of that name."""
    maps = [name for name in names if name.endswith(HEAT_MAP_SUFFIX)]
    if maps:
        known = {known for name in names for known in (name, os.path.splitext(name)[0])}
        unknown = [name for name in maps if name.removesuffix(HEAT_MAP_SUFFIX) not in known]
        if unknown:
            _report_left_out(folder, len(unknown))


@cache
def _report_left_out(folder: str, count: int) -> None:
    _log.warning(
        "image folder %s: left out %d with a name *%s, as `efficientad predict` names its "
        "pictures; rename them if they are images of your own",
        printable(folder),
        count,
        HEAT_MAP_SUFFIX,
    )


def list_images(folder: Path) -> list[Path]:
    """The image files below a folder, by name and suffix, sorted.

    Links to folders are followed, each real folder once. These are left out: hidden files and
    folders, folders of file servers such as `@eaDir`, and heat maps that this package wrote. A link
    to nowhere or a pipe with an image's name is listed: its reader reports what it is.

    Raises:
      InputError: there is no such folder, no image in it, or a folder in it cannot be read.
    """
    found = find_images(folder)
    if not found:
        raise InputError(
            f"image folder {folder}: no images, expected files ending in "
            f"{', '.join(sorted(SUFFIXES))}, and not in {HEAT_MAP_SUFFIX}"
        )
    return found


def _refuse(error: OSError) -> None:
    raise InputError(f"image folder {error.filename}: cannot be read ({error.strerror})")

"""Finding image files."""

import logging
import os
from pathlib import Path

from efficientad_jax.errors import InputError

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
        path.suffix.lower() in SUFFIXES
        and not path.name.startswith(".")
        and not path.name.endswith(HEAT_MAP_SUFFIX)
    )


def is_data_folder(name: str) -> bool:
    """Whether a folder may hold images: it is neither hidden nor one of a file server's own."""
    return not name.startswith(".") and name.lower() not in _SERVICE_FOLDERS


def find_images(folder: Path) -> list[Path]:
    """As `list_images`, but a folder may hold none.

    Raises:
      InputError: there is no such folder, or a folder in it cannot be read.
    """
    if not str(folder) or not folder.is_dir():
        raise InputError(f"image folder {str(folder)!r}: no such folder")
    found = []
    visited = set()
    for parent, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:
            _log.warning("image folder %s: links to a folder that is read already", parent)
            folders.clear()
            continue
        visited.add(real)
        # Links come last, so that a folder keeps its own name.
        folders[:] = sorted(
            filter(is_data_folder, folders),
            key=lambda name: (os.path.islink(os.path.join(parent, name)), name),
        )
        found += [path for path in (Path(parent, name) for name in names) if is_image(path)]
    return sorted(found)


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

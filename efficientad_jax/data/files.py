"""Finding image files."""

import os
from pathlib import Path

from efficientad_jax.errors import InputError

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


def is_image(path: Path) -> bool:
    """Whether a file is taken for an image: by its name, which is not that of a hidden file."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def find_images(folder: Path) -> list[Path]:
    """As `list_images`, but a folder may hold none.

    Raises:
      InputError: there is no such folder, or a folder in it cannot be read.
    """
    if not str(folder) or not folder.is_dir():
        raise InputError(f"image folder {str(folder)!r}: no such folder")
    found = []
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [path for path in (Path(parent, name) for name in names) if is_image(path)]
    return sorted(found)


def list_images(folder: Path) -> list[Path]:
    """The image files below a folder, by name and suffix, sorted.

    Hidden files, and those in hidden folders such as `.ipynb_checkpoints`, are left out; links to
    folders are not followed, so that there is no going in circles. A link to nowhere or a pipe
    with an image's name is listed: whoever reads it says what it is.

    Raises:
      InputError: there is no such folder, no image in it, or a folder in it cannot be read.
    """
    found = find_images(folder)
    if not found:
        raise InputError(
            f"image folder {folder}: no images, expected files ending in "
            f"{', '.join(sorted(SUFFIXES))}"
        )
    return found


def _refuse(error: OSError) -> None:
    raise InputError(f"image folder {error.filename}: cannot be read ({error.strerror})")

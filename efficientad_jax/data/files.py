"""Finding image files."""

from pathlib import Path

from efficientad_jax.errors import InputError

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


def list_images(folder: Path) -> list[Path]:
    """The image files below a folder, by name and suffix, sorted.

    Hidden files, and those in hidden folders such as `.ipynb_checkpoints`, are left out.

    Raises:
      InputError: there is no such folder, or no image in it.
    """
    if not str(folder) or not folder.is_dir():
        raise InputError(f"image folder {str(folder)!r}: no such folder")
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    if not found:
        raise InputError(
            f"image folder {folder}: no images, expected files ending in "
            f"{', '.join(sorted(SUFFIXES))}"
        )
    return sorted(found)

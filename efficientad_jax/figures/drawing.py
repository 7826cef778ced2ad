"""Common parts of the figures: sizes and fonts for print, and saving."""

import io
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from efficientad_jax.errors import InputError
from efficientad_jax.storage.atomic import write_atomically

# Widths of a column and of the text of a page in the format of the conference, in inches.
COLUMN, PAGE = 3.25, 6.875

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # Text is stored as text, so that it can be searched and copied.
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "efficientad_jax",
}
# Without dates and versions, equal figures give equal files.
_METADATA = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    ".svg": {"Date": None, "Creator": None},
}


def check_figure_path(path: Path) -> None:
    """Checks that the name of a file has a supported ending.

    Raises:
      InputError: it has none.
    """
    if path.suffix.lower() not in _METADATA:
        raise InputError(f"figure {path}: expected a name that ends in {', '.join(_METADATA)}")


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG (300 dots per inch), PDF or SVG, according to the name.

    Raises:
      InputError: the name has another ending.
      OSError: the file cannot be written.
    """
    check_figure_path(path)
    suffix = path.suffix.lower()
    content = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(
            content, format=suffix[1:], dpi=300, bbox_inches="tight", metadata=_METADATA[suffix]
        )
    write_atomically(path, content.getvalue())


def hide_frame(axes: Axes) -> None:
    """Removes ticks and frame, for axes that show an image."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)

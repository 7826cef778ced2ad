"""What the figures have in common: sizes and fonts for print, and how they are saved."""

import io
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from efficientad_jax.errors import InputError
from efficientad_jax.storage.atomic import write_atomically

# Widths of a column and of a page of the conference's format, inches.
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
    # Text stays text: it can be searched and copied.
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "efficientad_jax",
}
# No dates and versions: equal figures give equal files.
_METADATA = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    ".svg": {"Date": None, "Creator": None},
}


def check_figure_path(path: Path) -> None:
    """Checks the format that a name asks for.

    Raises:
      InputError: it is none of those that can be written.
    """
    if path.suffix.lower() not in _METADATA:
        raise InputError(f"figure {path}: expected a name that ends in {', '.join(_METADATA)}")


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure in the format of its name: PNG at 300 dots an inch, PDF or SVG.

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
    """Takes ticks and frame away, as images have none."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)

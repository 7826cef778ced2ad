"""AU-ROC against latency (paper, Figure 1)."""

import textwrap
from collections.abc import Mapping
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from efficientad_jax.evaluation import paper_results
from efficientad_jax.figures.drawing import COLUMN, STYLE
from efficientad_jax.networks.pdn import NAMES

_OURS, _PAPER, _OTHERS = "#c0392b", "#1f5f9c", "#7f8c8d"
# Where a method's name stands beside its point, in points: to the right, unless that is taken.
_OFFSETS = {"EfficientAD-S": (0, 6, "center"), "PatchCore ensemble": (0, -17, "center")}


class Point(NamedTuple):
    """A detector of one's own.

    Attributes:
      latency: milliseconds an image.
      auroc: image AU-ROC, mean over the collections, per cent.
      deviation: of it over seeds, None of one seed.
    """

    latency: float
    auroc: float
    deviation: float | None


def draw_latency(points: Mapping[str, Point], measured_on: str) -> Figure:
    """The paper's methods as it reports them, and one's own detectors.

    Args:
      points: by name; none for the paper's alone.
      measured_on: device and dtype of their latencies.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN, 3.0), layout="constrained")
        axis = figure.subplots()
        axis.set_xscale("log")
        for name, method in paper_results.OTHER_METHODS.items():
            at = method.latency.mean, method.detection.mean
            axis.plot(*at, "o", color=_OTHERS, markersize=4)
            _label(axis, name, at, _OTHERS)
        for size, method in paper_results.EFFICIENT_AD.items():
            at = method.latency.mean, method.detection.mean
            axis.plot(*at, "D", color=_PAPER, markersize=4.5)
            _label(axis, NAMES[size], at, _PAPER)
        for name, point in points.items():
            axis.errorbar(
                point.latency,
                point.auroc,
                yerr=point.deviation,
                fmt="*",
                color=_OURS,
                markersize=8,
                capsize=2,
                elinewidth=0.8,
            )
            _label(axis, name, (point.latency, point.auroc), _OURS, below=True)
        device = f" ({paper_results.SPEED_MEASURED_ON})"
        axis.plot([], [], "D", color=_PAPER, markersize=4.5, label="EfficientAD, paper" + device)
        axis.plot([], [], "o", color=_OTHERS, markersize=4, label="other methods, paper")
        if points:
            ours = textwrap.fill(f"ours ({measured_on})", 60)
            axis.plot([], [], "*", color=_OURS, markersize=8, label=ours)
        axis.set_xlabel("latency, ms")
        axis.set_ylabel("image AU-ROC, %")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.25, linewidth=0.4)
        axis.margins(x=0.18, y=0.08)
        figure.legend(loc="outside lower left", frameon=False)
    return figure


def _label(
    axis: Axes, name: str, at: tuple[int | float, int | float], color: str, below: bool = False
) -> None:
    x, y, side = (5, -8, "left") if below else _OFFSETS.get(name, (5, -2.5, "left"))
    text = name.replace("PatchCore ", "PatchCore\n")
    axis.annotate(text, at, (x, y), textcoords="offset points", ha=side, fontsize=6.5, color=color)

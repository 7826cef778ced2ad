"""Metrics against the number of training steps."""

import statistics
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from efficientad_jax.figures.drawing import COLUMN, STYLE

_HEIGHT = 2.4


def draw_learning_curves(
    curves: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]],
    ranked: Mapping[str, tuple[Sequence[tuple[float, float]], float | None]] | None = None,
) -> Figure:
    """Draws a panel per metric, and in it a line per curve through the means over seeds.

    Args:
      curves: the values of all seeds by metric, by name of the curve, and by number of steps.
      ranked: by category the proxy and the image AU-ROC of each training, and their Spearman
        correlation, for a last panel; None or empty for none.
    """
    with matplotlib.rc_context(STYLE):
        count = max(1, len(curves) + bool(ranked))
        figure = Figure(figsize=(COLUMN, _HEIGHT * count), layout="constrained")
        panels = figure.subplots(count, squeeze=False)[:, 0]
        for axis, (metric, by_name) in zip(panels, curves.items(), strict=False):
            for name, by_steps in by_name.items():
                steps = sorted(by_steps)
                means = [statistics.fmean(by_steps[count]) for count in steps]
                spread = [
                    statistics.stdev(by_steps[count]) if len(by_steps[count]) > 1 else 0.0
                    for count in steps
                ]
                axis.errorbar(steps, means, yerr=spread, marker="o", markersize=3, label=name)
            axis.set_xscale("log", base=2)
            axis.set_xticks(sorted({count for by_steps in by_name.values() for count in by_steps}))
            axis.xaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")
            axis.set_xlabel("training steps")
            axis.set_ylabel(metric)
            axis.legend()
        if ranked:
            _draw_ranking(panels[-1], ranked)
    return figure


def _draw_ranking(
    axis: Axes, ranked: Mapping[str, tuple[Sequence[tuple[float, float]], float | None]]
) -> None:
    """A point per training: its proxy AU-ROC to the right, its image AU-ROC upward."""
    for category, (pairs, correlation) in ranked.items():
        known = "not defined" if correlation is None else f"{correlation:.2f}"
        proxies, true = zip(*pairs, strict=True) if pairs else ((), ())
        axis.scatter(proxies, true, s=9, label=f"{category}, Spearman {known}")
    axis.set_xlabel("proxy AU-ROC")
    axis.set_ylabel("image AU-ROC")
    axis.legend()

"""Metrics against the number of training steps."""

import statistics
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure

from efficientad_jax.figures.drawing import COLUMN, STYLE

_HEIGHT = 2.4


def draw_learning_curves(
    curves: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]],
) -> Figure:
    """Draws a panel per metric, and in it a line per curve through the means over seeds.

    Args:
      curves: the values of all seeds by metric, by name of the curve, and by number of steps.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN, _HEIGHT * max(1, len(curves))), layout="constrained")
        panels = figure.subplots(max(1, len(curves)), squeeze=False)[:, 0]
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
    return figure

"""What a benchmark found, as JSON, as a Markdown table and as a plot."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from efficientad_jax.atomic_file import write_atomically
from efficientad_jax.benchmark.implementations import LAX, OURS
from efficientad_jax.benchmark.timing import Spread


class Measurement(NamedTuple):
    """The implementations of one network in one situation.

    Attributes:
      size: 'small' or 'medium'.
      what: such as 'batch 1' or 'train step'.
      images: how many images a call works on: times are divided by it.
      times: by implementation, seconds of a call.
    """

    size: str
    what: str
    images: int
    times: dict[str, Spread]


def ratio_to_best_peer(measurement: Measurement) -> float | None:
    """How many times faster than the fastest of the others ours is; None without others.

    JAX with XLA's own convolution is not one of the others.
    """
    others = [t.median for name, t in measurement.times.items() if name not in (OURS, LAX)]
    return min(others) / measurement.times[OURS].median if others else None


def markdown(measurements: Sequence[Measurement]) -> str:
    """A row an implementation, a column a measurement: median (quartiles), ms an image."""
    names = list(dict.fromkeys(name for m in measurements for name in m.times))
    title = {"small": "S", "medium": "M"}
    lines = [
        "| ms an image | " + " | ".join(f"{title[m.size]}, {m.what}" for m in measurements) + " |",
        "|---" * (len(measurements) + 1) + "|",
    ]
    for name in names:
        cells = [_cell(m.times.get(name), m.images) for m in measurements]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    ratios = [ratio_to_best_peer(m) for m in measurements]
    cells = ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    lines.append("| times faster than the best of the others | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(spread: Spread | None, images: int) -> str:
    if spread is None:
        return ""
    median, lower, upper = (1e3 * seconds / images for seconds in spread)
    return f"{median:.0f} ({lower:.0f}-{upper:.0f})"


def write_results(
    folder: Path, facts: Mapping[str, Any], measurements: Sequence[Measurement]
) -> None:
    """Writes `benchmark.json`, `benchmark.md` and `benchmark.png` to a folder, made if need be.

    Args:
      folder: where to.
      facts: machine, versions, what the networks cost.
      measurements: at least one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = [
        {
            "size": m.size,
            "what": m.what,
            "images": m.images,
            "seconds": {name: spread._asdict() for name, spread in m.times.items()},
            "ratio_to_best_peer": ratio_to_best_peer(m),
        }
        for m in measurements
    ]
    document = json.dumps({"facts": dict(facts), "measurements": found}, indent=2) + "\n"
    write_atomically(folder / "benchmark.json", document.encode())
    told = [f"- {key}: {value}" for key, value in facts.items()]
    text = "\n".join([*told, "", markdown(measurements), ""])
    write_atomically(folder / "benchmark.md", text.encode())
    _plot(folder / "benchmark.png", measurements)


def _plot(path: Path, measurements: Sequence[Measurement]) -> None:
    figure, axes = pyplot.subplots(
        1, len(measurements), figsize=(3.2 * len(measurements), 3), squeeze=False
    )
    for axis, m in zip(axes[0], measurements, strict=True):
        names = list(m.times)[::-1]
        medians = [1e3 * m.times[name].median / m.images for name in names]
        errors = [
            [1e3 * (m.times[n].median - m.times[n].lower) / m.images for n in names],
            [1e3 * (m.times[n].upper - m.times[n].median) / m.images for n in names],
        ]
        colors = ["#c0392b" if name == OURS else "#7f8c8d" for name in names]
        axis.barh(names, medians, xerr=errors, color=colors)
        axis.set_title(f"EfficientAD-{m.size[0].upper()}, {m.what}", fontsize=9)
        axis.set_xlabel("ms an image")
        axis.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)

"""What a benchmark found, as JSON, as a Markdown table and as a plot."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from efficientad_jax.benchmark.cost import Cost
from efficientad_jax.benchmark.implementations import LAX, OURS
from efficientad_jax.benchmark.start_up import StartUp
from efficientad_jax.benchmark.timing import Spread
from efficientad_jax.evaluation.paper_results import EFFICIENT_AD, SPEED_MEASURED_ON
from efficientad_jax.networks.pdn import LETTERS, NAMES, Size
from efficientad_jax.storage.atomic import write_atomically


class Measurement(NamedTuple):
    """The implementations of one network in one situation.

    Attributes:
      size: 'small' or 'medium'.
      what: such as 'batch 1' or 'train step'.
      images: how many images a call works on: times are divided by it.
      times: by implementation, seconds of a call.
    """

    size: Size
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
    lines = [
        "| ms an image | "
        + " | ".join(f"{LETTERS[m.size]}, {m.what}" for m in measurements)
        + " |",
        "|---" * (len(measurements) + 1) + "|",
    ]
    for name in names:
        cells = [_cell(m.times.get(name), m.images) for m in measurements]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    ratios = [ratio_to_best_peer(m) for m in measurements]
    cells = ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    lines.append("| times faster than the best of the others | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary(
    size: Size,
    measurements: Sequence[Measurement],
    cost: Cost,
    starts: Mapping[str, StartUp],
) -> str:
    """The columns of the paper's Table 11, with the paper's figures, and start-up.

    Args:
      size: of the networks; measurements of others are passed over.
      measurements: those of batch 1 give latencies, those of the largest batch give throughputs.
      cost: the same for all.
      starts: by implementation.
    """
    own = sorted((m for m in measurements if m.size == size), key=lambda m: m.images)
    lines = [
        f"| {NAMES[size]} | latency, ms | images/s, batch {own[-1].images} "
        "| parameters, M | GFLOP | memory, MB | first start, s | second start, s |",
        "|---" * 8 + "|",
    ]
    counted = f"{cost.parameters / 1e6:.2f} | {cost.flop / 1e9:.1f}"
    for name in dict.fromkeys(name for m in own for name in m.times):
        latency, many = own[0].times.get(name), own[-1].times.get(name)
        start = starts.get(name)
        cells = [
            name,
            "" if latency is None or own[0].images > 1 else f"{1e3 * latency.median:.0f}",
            "" if many is None else f"{own[-1].images / many.median:.1f}",
            counted,
            "" if start is None else f"{start.peak_bytes / 1e6:.0f}",
            "" if start is None else f"{start.cold:.1f}",
            "" if start is None else f"{start.second:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    paper = EFFICIENT_AD[size]
    columns = (paper.latency, paper.throughput, paper.parameters, paper.flop, paper.memory)
    told = " | ".join(str(figure.mean) for figure in columns)
    lines.append(f"| the paper: {SPEED_MEASURED_ON}, batch 16 | {told} | | |")
    return "\n".join(lines)


def _cell(spread: Spread | None, images: int) -> str:
    if spread is None:
        return ""
    median, lower, upper = (1e3 * seconds / images for seconds in spread)
    return f"{median:.0f} ({lower:.0f}-{upper:.0f})"


def write_results(
    folder: Path,
    facts: Mapping[str, Any],
    measurements: Sequence[Measurement],
    costs: Mapping[Size, Cost],
    starts: Mapping[Size, Mapping[str, StartUp]],
) -> str:
    """Writes `benchmark.json`, `benchmark.md` and `benchmark.png` to a folder, made if need be.

    Args:
      folder: where to.
      facts: machine, versions, settings.
      measurements: at least one.
      costs: by size; empty for train steps.
      starts: by size and implementation.

    Returns:
      The tables of `benchmark.md`.
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
    document = {
        "facts": dict(facts),
        "measurements": found,
        "costs": {size: cost._asdict() for size, cost in costs.items()},
        "start_up": {
            size: {name: start._asdict() for name, start in of.items()}
            for size, of in starts.items()
        },
    }
    write_atomically(folder / "benchmark.json", (json.dumps(document, indent=2) + "\n").encode())
    tables = [markdown(measurements)]
    tables += [
        summary(size, measurements, cost, starts.get(size, {})) for size, cost in costs.items()
    ]
    text = "\n\n".join(tables)
    told = [f"- {key}: {value}" for key, value in facts.items()]
    write_atomically(folder / "benchmark.md", "\n".join([*told, "", text, ""]).encode())
    _plot(folder / "benchmark.png", measurements)
    return text


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
        axis.set_title(f"{NAMES[m.size]}, {m.what}", fontsize=9)
        axis.set_xlabel("ms an image")
        axis.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)

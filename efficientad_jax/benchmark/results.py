"""The results of a benchmark as JSON, Markdown tables and a plot."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from efficientad_jax.benchmark.cost import Cost
from efficientad_jax.benchmark.implementations import LAX, OURS
from efficientad_jax.benchmark.start_up import StartUp
from efficientad_jax.benchmark.timing import Spread
from efficientad_jax.evaluation.paper_results import EFFICIENT_AD, SPEED_MEASURED_ON
from efficientad_jax.networks.pdn import LETTERS, NAMES, Size
from efficientad_jax.storage.atomic import write_atomically


class Measurement(NamedTuple):
    """The times of all implementations of one task.

    Attributes:
      size: of the networks, 'small' or 'medium'.
      task: such as 'batch 1' or 'train step'.
      images: number of images per call, by which times are divided in tables.
      times: seconds per call, by implementation.
    """

    size: Size
    task: str
    images: int
    times: dict[str, Spread]


def ratio_to_best_peer(measurement: Measurement) -> float | None:
    """How many times faster this package is than the fastest peer; None without peers.

    JAX with XLA's convolution is not a peer.
    """
    peers = [t.median for name, t in measurement.times.items() if name not in (OURS, LAX)]
    return min(peers) / measurement.times[OURS].median if peers else None


def times_table(measurements: Sequence[Measurement]) -> str:
    """A row per implementation, a column per measurement: median (quartiles), ms per image."""
    names = list(dict.fromkeys(name for m in measurements for name in m.times))
    lines = [
        "| ms per image | "
        + " | ".join(f"{LETTERS[m.size]}, {m.task}" for m in measurements)
        + " |",
        "|---" * (len(measurements) + 1) + "|",
    ]
    for name in names:
        cells = [_cell(m.times.get(name), m.images) for m in measurements]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    ratios = [ratio_to_best_peer(m) for m in measurements]
    cells = ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    lines.append("| times faster than the fastest peer | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def costs_table(
    size: Size,
    measurements: Sequence[Measurement],
    cost: Cost,
    *,
    starts: Mapping[str, StartUp],
) -> str:
    """The columns of the paper's Table 11 and start-up times, with the paper's numbers.

    Args:
      size: of the networks; measurements of the other size are ignored.
      measurements: batch 1 gives the latencies, the largest batch the throughputs.
      cost: of the networks; the same for all implementations.
      starts: start-up by implementation.
    """
    batches = sorted((m for m in measurements if m.size == size), key=lambda m: m.images)
    lines = [
        f"| {NAMES[size]} | latency, ms | images/s, batch {batches[-1].images} "
        "| parameters, M | GFLOP | memory, MB | first start, s | second start, s |",
        "|---" * 8 + "|",
    ]
    cost_cells = f"{cost.parameters / 1e6:.2f} | {cost.flop / 1e9:.1f}"
    for name in dict.fromkeys(name for m in batches for name in m.times):
        latency, many = batches[0].times.get(name), batches[-1].times.get(name)
        start = starts.get(name)
        cells = [
            name,
            "" if latency is None or batches[0].images > 1 else f"{1e3 * latency.median:.0f}",
            "" if many is None else f"{batches[-1].images / many.median:.1f}",
            cost_cells,
            "" if start is None else f"{start.peak_bytes / 1e6:.0f}",
            "" if start is None else f"{start.cold:.1f}",
            "" if start is None else f"{start.second:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    paper = EFFICIENT_AD[size]
    columns = (paper.latency, paper.throughput, paper.parameters, paper.flop, paper.memory)
    values = " | ".join(str(column.mean) for column in columns)
    lines.append(f"| the paper: {SPEED_MEASURED_ON}, batch 16 | {values} | | |")
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
    *,
    costs: Mapping[Size, Cost],
    starts: Mapping[Size, Mapping[str, StartUp]],
) -> str:
    """Writes `benchmark.json`, `benchmark.md` and `benchmark.png`.

    Args:
      folder: for the files; created if it does not exist.
      facts: machine, versions and settings.
      measurements: at least one.
      costs: by size; empty for train steps.
      starts: start-up by size and implementation.

    Returns:
      The tables of `benchmark.md`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = [
        {
            "size": m.size,
            "what": m.task,
            "images": m.images,
            "seconds": {name: spread._asdict() for name, spread in m.times.items()},
            "ratio_to_best_peer": ratio_to_best_peer(m),
        }
        for m in measurements
    ]
    document = {
        "facts": dict(facts),
        "measurements": entries,
        "costs": {size: cost._asdict() for size, cost in costs.items()},
        "start_up": {
            size: {name: start._asdict() for name, start in by_name.items()}
            for size, by_name in starts.items()
        },
    }
    write_atomically(folder / "benchmark.json", (json.dumps(document, indent=2) + "\n").encode())
    tables = [times_table(measurements)]
    tables += [
        costs_table(size, measurements, cost, starts=starts.get(size, {}))
        for size, cost in costs.items()
    ]
    text = "\n\n".join(tables)
    fact_lines = [f"- {key}: {value}" for key, value in facts.items()]
    write_atomically(folder / "benchmark.md", "\n".join([*fact_lines, "", text, ""]).encode())
    _plot(folder / "benchmark.png", measurements)
    return text


def _plot(path: Path, measurements: Sequence[Measurement]) -> None:
    figure = Figure(figsize=(3.2 * len(measurements), 3))
    axes = figure.subplots(1, len(measurements), squeeze=False)
    for axis, m in zip(axes[0], measurements, strict=True):
        names = list(m.times)[::-1]
        medians = [1e3 * m.times[name].median / m.images for name in names]
        errors = [
            [1e3 * (m.times[n].median - m.times[n].lower) / m.images for n in names],
            [1e3 * (m.times[n].upper - m.times[n].median) / m.images for n in names],
        ]
        colors = ["#c0392b" if name == OURS else "#7f8c8d" for name in names]
        axis.barh(names, medians, xerr=errors, color=colors)
        axis.set_title(f"{NAMES[m.size]}, {m.task}", fontsize=9)
        axis.set_xlabel("ms per image")
        axis.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)

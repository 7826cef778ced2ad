"""The paper's tables: which detectors each needs, and its cells, ours beside the paper's."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from efficientad_jax.benchmark.cost import Cost
from efficientad_jax.config import Config
from efficientad_jax.evaluation import paper_results
from efficientad_jax.evaluation.paper_results import Figure, Method
from efficientad_jax.networks.pdn import NAMES, SIZES, Size
from efficientad_jax.reproduction.aggregation import (
    LOCO_KINDS,
    Measured,
    Results,
    collection_figure,
    detection,
    detection_of_kind,
    mean_figure,
    segmentation_of,
)
from efficientad_jax.reproduction.collections_on_disk import COLLECTIONS
from efficientad_jax.reproduction.plan import FULL, Variant, variant_of
from efficientad_jax.reproduction.speed import Speed

# The sizes that the paper has in each table.
TABLES: dict[int, tuple[Size, ...]] = {
    1: SIZES,
    2: SIZES,
    3: ("medium",),
    4: SIZES,
    5: ("small",),
    11: SIZES,
}

# What Table 3 varies, and the field of the configuration that it is.
_SWEPT = {"a": "calibration.q_a", "b": "calibration.q_b", "p_hard": "losses.p_hard"}
# Tables 4 and 5 switch off.
_NO_NORMALIZATION = {"calibration.normalize": False}
_NO_HARD_FEATURES = {"losses.p_hard": 0.0}
_NO_PENALTY = {"losses.penalty": False}


class Column(NamedTuple):
    """A figure that a table has of each of its rows."""

    key: str
    heading: str
    decimals: int


class Row(NamedTuple):
    """A row before anything is measured.

    Attributes:
      label: its first cell.
      size: of our detectors, None for a method that only the paper has figures of.
      variant: of our detectors.
      paper: the paper's figures, by the key of the column.
    """

    label: str
    size: Size | None
    variant: Variant
    paper: Mapping[str, Figure]


class Cell(NamedTuple):
    """One figure, as far as there is one."""

    ours: Measured | None
    paper: Figure | None


class Table(NamedTuple):
    """A table with its cells.

    Attributes:
      number: in the paper.
      title: what it shows.
      columns: without the first, the labels.
      rows: labels and as many cells as columns.
      notes: what a reader has to know, a sentence each.
    """

    number: int
    title: str
    columns: Sequence[Column]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    notes: Sequence[str]


class Measurements(NamedTuple):
    """All that cells are taken from."""

    results: Results
    speeds: Mapping[Size, Speed]
    costs: Mapping[Size, Cost]


_TITLES = {
    1: "Detection, segmentation and speed, means over MVTec AD, VisA and MVTec LOCO AD",
    2: "Image AU-ROC (%) by collection, and by kind of anomaly of MVTec LOCO AD",
    3: "Image AU-ROC (%) for other quantiles and mining factors",
    4: "Cumulative ablation, image AU-ROC (%)",
    5: "Isolated ablation, image AU-ROC (%)",
    11: "Cost of one image",
}
_SPEED_COLUMNS = (
    Column("latency", "latency, ms", 1),
    Column("throughput", "images/s", 0),
)
_COLLECTION_COLUMNS = (
    *(Column(name, c.benchmark.title, 1) for name, c in COLLECTIONS.items()),
    Column("mean", "mean", 1),
)
_COLUMNS = {
    1: (
        Column("detection", "image AU-ROC, %", 1),
        Column("segmentation", "AU-PRO, %", 1),
        *_SPEED_COLUMNS,
    ),
    2: (
        *_COLLECTION_COLUMNS,
        *(Column(kind, f"LOCO, {kind}", 1) for kind in LOCO_KINDS),
    ),
    3: _COLLECTION_COLUMNS,
    4: _COLLECTION_COLUMNS,
    5: _COLLECTION_COLUMNS,
    11: (
        Column("parameters", "parameters, 10^6", 1),
        Column("flop", "FLOP, 10^9", 0),
        *_SPEED_COLUMNS,
        Column("memory", "GPU memory, MB", 0),
    ),
}


def rows_of(number: int, sizes: Sequence[Size], config: Config) -> list[Row]:
    """The rows of a table.

    Args:
      number: one of `TABLES`.
      sizes: of networks that rows are wanted of.
      config: the configuration that variants differ from.
    """
    variant = partial(variant_of, config)
    if number in (1, 11):
        others = [
            Row(name, None, FULL, _of_method(method))
            for name, method in paper_results.OTHER_METHODS.items()
        ]
        return others + [
            Row(NAMES[size], size, FULL, _of_method(paper_results.EFFICIENT_AD[size]))
            for size in sizes
        ]
    if number == 2:
        return [Row(NAMES[size], size, FULL, paper_results.COLLECTIONS[size]) for size in sizes]
    if number == 3:
        return [
            Row(
                f"{NAMES[size]}, {what} = {value:g}",
                size,
                variant({_SWEPT[what]: value}),
                {"mean": figure} if size == "medium" else {},
            )
            for size in sizes
            for what, figures in paper_results.SWEEPS.items()
            for value, figure in figures.items()
        ]
    if number == 4:
        steps: list[tuple[Size, Variant]] = [
            ("small", variant(_NO_NORMALIZATION | _NO_HARD_FEATURES | _NO_PENALTY)),
            ("small", variant(_NO_HARD_FEATURES | _NO_PENALTY)),
            ("small", variant(_NO_PENALTY)),
            ("small", FULL),
            ("medium", FULL),
        ]
        return [
            Row(label, size, changed, {"mean": figure})
            for (size, changed), (label, figure) in zip(
                steps, paper_results.CUMULATIVE.items(), strict=True
            )
            if size in sizes
        ]
    assert number == 5
    removed = [{}, _NO_NORMALIZATION, _NO_HARD_FEATURES, _NO_PENALTY]
    return [
        Row(
            label if size == "small" else label.replace(NAMES["small"], NAMES[size]),
            size,
            variant(changes),
            {"mean": figure} if size == "small" else {},
        )
        for size in sizes
        for changes, (label, figure) in zip(removed, paper_results.ISOLATED.items(), strict=True)
    ]


def detectors_of(number: int, rows: Sequence[Row]) -> list[tuple[Size, Variant]]:
    """Sizes and variants that have to be trained and evaluated for a table's rows."""
    return [] if number == 11 else [(row.size, row.variant) for row in rows if row.size is not None]


def fill(
    number: int, rows: Sequence[Row], measurements: Measurements, notes: Sequence[str]
) -> Table:
    """The table with all figures that there are."""
    columns = _COLUMNS[number]
    filled = [
        (
            row.label,
            [
                Cell(
                    None
                    if row.size is None
                    else _measure(c.key, row.size, row.variant, measurements),
                    row.paper.get(c.key),
                )
                for c in columns
            ],
        )
        for row in rows
    ]
    return Table(number, _TITLES[number], columns, filled, notes)


def _of_method(method: Method) -> dict[str, Figure]:
    return method._asdict()


def _measure(key: str, size: Size, variant: Variant, of: Measurements) -> Measured | None:
    if key in COLLECTIONS:
        return collection_figure(of.results, key, size, variant, detection)
    if key in LOCO_KINDS:
        kind = detection_of_kind(key)
        return collection_figure(of.results, "mvtec_loco", size, variant, kind)
    if key in ("mean", "detection"):
        return mean_figure(of.results, size, variant, lambda _: detection)
    if key == "segmentation":
        return mean_figure(of.results, size, variant, segmentation_of)
    if key in Speed._fields:
        return getattr(of.speeds.get(size, Speed()), key)
    cost = of.costs.get(size)
    if cost is None:
        return None
    return Measured(cost.parameters / 1e6 if key == "parameters" else cost.flop / 1e9)

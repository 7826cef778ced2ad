"""One HTML file that shows how well a detector does on a test split, and where it fails."""

import base64
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import NamedTuple

import jinja2
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8
from PIL import Image, ImageFilter
from sklearn.metrics import roc_curve

from efficientad_jax.detection.heatmap import LINE_COLOR, color_indices, palette
from efficientad_jax.errors import InputError
from efficientad_jax.evaluation.metrics import Metrics
from efficientad_jax.evaluation.region_detection import RegionCounts, RelativeBox
from efficientad_jax.evaluation.region_overlap import PRO_LIMIT, OverlapCurve
from efficientad_jax.storage.atomic import write_atomically

# Pixels of the longer side of a photograph: the largest with which the photographs stay below the
# limit of bytes.
_PHOTOGRAPH_SIDES = (320, 256, 192, 128, 96)
_PICTURE_BYTES = 10_000_000
_SAMPLED = 16
# A map carries no finer detail than the networks' 56 x 56; the browser smooths.
_MAP_SIDE = 64
_MAP_COLORS = 64
_BINS = 40


class ScoredImages(NamedTuple):
    """A test split with the detector's results; entry i of each field belongs to image i.

    Attributes:
      names: names for the reader, e.g. the path within the dataset.
      labels: 0 for good, 1 for anomalous.
      defects: the kind of defect, or an empty string.
      scores: the image scores; higher is more anomalous.
      images: uint8 RGB, of any size.
      maps: float32 anomaly maps, of any size; each is shown stretched over its image.
      masks: True on the true defect, of any size; None where unknown.
      local_maps: as `maps`, of only the student against the teacher; None where `maps` are those.
      global_maps: as `maps`, of the autoencoder; None without one.
      boxes: of the regions; None for a detector without a pixel threshold.
    """

    names: Sequence[str]
    labels: Int[np.ndarray, "n"]
    defects: Sequence[str]
    scores: Float[np.ndarray, "n"]
    images: Sequence[UInt8[np.ndarray, "_h _w 3"]] | UInt8[np.ndarray, "n h w 3"]
    maps: Sequence[Float32[np.ndarray, "_ _"]]
    masks: Sequence[Bool[np.ndarray, "_ _"] | None]
    local_maps: Sequence[Float32[np.ndarray, "_ _"]] | None = None
    global_maps: Sequence[Float32[np.ndarray, "_ _"]] | None = None
    boxes: Sequence[Sequence[RelativeBox]] | None = None


def write_report(  # long: names every variable of the template
    path: str | os.PathLike[str],
    test: ScoredImages,
    metrics: Metrics,
    *,
    title: str,
    baselines: Mapping[str, float | None],
    facts: Mapping[str, str],
    threshold: float | None = None,
    regions: RegionCounts | None = None,
    max_images: int = 1000,
) -> None:
    """Writes the report: one self-contained HTML file that needs no network.

    It shows the metrics next to those of trivial baselines, a histogram of the scores with an
    adjustable threshold, the ROC and PRO curves, and a gallery of the images under their anomaly
    maps that can be sorted and filtered. 500 photographs take less than 15 MB. Equal arguments
    give equal bytes.

    Args:
      path: where to write; the file appears complete or not at all.
      test: the images and the detector's results for them.
      metrics: the result of `metrics.evaluate` for `test`.
      title: heading, e.g. "EfficientAD-S on magnetic tiles".
      baselines: image AU-ROC of trivial detectors on the same split, by name, in [0, 1].
      facts: further facts for the reader (dataset, sizes, versions), by name.
      threshold: initial threshold, a score >= it counts as anomalous; None uses the best-F1
        threshold, or the highest score if that is undefined.
      regions: counts of the regions whose boxes `test` has, None without them.
      max_images: the largest number of images in the gallery.

    Raises:
      InputError: there is no test image, or the fields of `test` differ in length.
      OSError: the file cannot be written.
    """
    _check(test)
    best = metrics.image_best_f1_threshold
    if threshold is not None:
        origin = "the detector's own threshold"
    elif best is not None:
        threshold, origin = best, "the threshold with the best F1 on these very images"
    else:
        threshold, origin = float(test.scores.max()), "the highest score"

    low, high = _axis_range(test.scores, threshold)
    maps = _named_maps(test)
    ranges = {name: _heat_range(named, test.labels) for name, named in maps.items()}
    # float64, as in the browser: both must count the same scores at the threshold.
    good = np.sort(test.scores[test.labels == 0].astype(np.float64))
    anomalous = np.sort(test.scores[test.labels == 1].astype(np.float64))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = (
        resources.files("efficientad_jax.evaluation")
        .joinpath("report.html.jinja")
        .read_text("utf-8")
    )
    html = environment.from_string(source).render(
        title=title,
        metrics=metrics,
        regions=regions,
        baselines=baselines,
        facts=facts,
        threshold=threshold,
        origin=origin,
        low=low,
        high=high,
        clipped=bool(test.scores.max() > high),
        good=[float(score) for score in good],
        anomalous=[float(score) for score in anomalous],
        bars=_histogram(good, anomalous, low=low, high=high),
        roc=_roc_points(test.scores, test.labels),
        pro=None if metrics.pro_curve is None else _pro_points(metrics.pro_curve),
        pro_limit=PRO_LIMIT,
        kinds=_kinds(test, metrics),
        cards=_gallery(test, maps, ranges, max_images=max_images),
        total=len(test.names),
        ranges=ranges,
        heat_colors=palette()[::51].tolist(),
    )
    write_atomically(path, html.encode("utf-8"))


class _Bar(NamedTuple):
    """A histogram bar in a plot of 100 x 100 units; good above the middle, anomalous below."""

    kind: str
    x: float
    y: float
    width: float
    height: float
    text: str


class _Card(NamedTuple):
    """An image of the gallery; its pictures are data URLs, the heat maps by name."""

    name: str
    kind: str
    label: int
    score: float
    image: str
    heats: dict[str, str]
    outline: str | None
    boxes: Sequence[RelativeBox]
    width: int
    height: int


class _Kind(NamedTuple):
    """Good images, or those with one kind of defect; the areas are None where not defined."""

    name: str
    images: int
    image_auroc: float | None
    au_spro: float | None


def _check(test: ScoredImages) -> None:
    fields = test._asdict().items()
    lengths = {name: len(value) for name, value in fields if value is not None}
    if not len(test.names):
        raise InputError("Report: found no test image, expected at least one.")
    for name, length in lengths.items():
        if length != len(test.names):
            raise InputError(
                f"Report: found {length} {name} for {len(test.names)} names, expected one each."
            )


def _axis_range(scores: Float[np.ndarray, "n"], threshold: float) -> tuple[float, float]:
    # One extreme defect must not squeeze all others into a single bar: scores far above the bulk
    # are counted in the last bin.
    low, bulk, top = float(scores.min()), float(np.quantile(scores, 0.95)), float(scores.max())
    high = min(top, low + 1.5 * (bulk - low)) if bulk > low else top
    low, high = min(low, threshold), max(high, threshold)
    if not low < high:
        margin = max(abs(low), 1.0) * 0.5
        low, high = low - margin, high + margin
    return low, high


def _histogram(
    good: Float[np.ndarray, "g"], anomalous: Float[np.ndarray, "a"], *, low: float, high: float
) -> list[_Bar]:
    edges = np.linspace(low, high, _BINS + 1)
    counts = {
        kind: np.histogram(np.minimum(scores, high), bins=edges)[0]
        for kind, scores in (("good", good), ("anomalous", anomalous))
    }
    bars = []
    for kind in counts:
        # Each class has its own scale: they seldom have equal size or spread.
        tallest = max(int(counts[kind].max()), 1)
        for i in np.flatnonzero(counts[kind]):
            height = 48 * int(counts[kind][i]) / tallest
            end = "and more" if i == _BINS - 1 else f"to {edges[i + 1]:.3g}"
            bars.append(
                _Bar(
                    kind=kind,
                    x=round(100 * int(i) / _BINS, 3),
                    y=round(50 - height if kind == "good" else 50.0, 3),
                    width=round(100 / _BINS, 3),
                    height=round(height, 3),
                    text=f"{edges[i]:.3g} {end}: {counts[kind][i]} {kind}",
                )
            )
    return bars


def _roc_points(
    scores: Float[np.ndarray, "n"], labels: Int[np.ndarray, "n"]
) -> list[tuple[float, float]] | None:
    """Corners of the ROC curve in a plot of 100 x 100 units, y downward; None for one class."""
    if labels.min() == labels.max():
        return None
    false_alarms, detected, _ = roc_curve(labels, scores)
    return [
        (round(100 * float(x), 2), round(100 - 100 * float(y), 2))
        for x, y in zip(false_alarms, detected, strict=True)
    ]


def _pro_points(curve: OverlapCurve) -> list[tuple[float, float]]:
    """Points of the PRO curve in a plot of 100 x 100 units, y downward."""
    rates = np.linspace(0, PRO_LIMIT, 101)
    overlaps = np.interp(rates, curve.false_positive_rates, curve.overlaps)
    return [
        (round(100 * float(x) / PRO_LIMIT, 2), round(100 - 100 * float(y), 2))
        for x, y in zip(rates, overlaps, strict=True)
    ]


def _named_maps(test: ScoredImages) -> dict[str, Sequence[Float32[np.ndarray, "_ _"]]]:
    named = {"combined": test.maps, "local": test.local_maps, "global": test.global_maps}
    return {name: maps for name, maps in named.items() if maps is not None}


def _heat_range(
    maps: Sequence[Float32[np.ndarray, "_ _"]], labels: Int[np.ndarray, "n"]
) -> tuple[float, float]:
    # One range for all images makes their colors comparable. With quantiles of the maps' peaks,
    # the quietest good image stays clear and one extreme defect does not fade the others.
    peaks = np.array([anomaly_map.max() for anomaly_map in maps], np.float64)
    good = peaks[labels == 0]
    low = float(np.quantile(good if good.size else peaks, 0.05))
    high = float(np.quantile(peaks, 0.95))
    return (low, high) if low < high else (low, low + max(abs(low), 1.0))


def _kind_of(test: ScoredImages, i: int) -> str:
    return (test.defects[i] or "anomalous") if test.labels[i] == 1 else "good"


def _kinds(test: ScoredImages, metrics: Metrics) -> list[_Kind]:
    """Good first, then the defects by name."""
    counts = Counter(_kind_of(test, i) for i in range(len(test.names)))
    return [
        _Kind(
            name,
            counts[name],
            metrics.image_auroc_by_defect.get(name),
            metrics.au_spro_by_defect.get(name),
        )
        for name in sorted(counts, key=lambda name: (name != "good", name))
    ]


def _gallery(
    test: ScoredImages,
    maps: Mapping[str, Sequence[Float32[np.ndarray, "_ _"]]],
    ranges: Mapping[str, tuple[float, float]],
    *,
    max_images: int,
) -> list[_Card]:
    """The worst misses first: anomalous images by rising score, then good ones by falling score."""
    order = np.argsort(test.scores, kind="stable")
    anomalous = [int(i) for i in order if test.labels[i] == 1]
    good = [int(i) for i in order[::-1] if test.labels[i] == 0]
    shown_anomalous = min(len(anomalous), max(max_images - len(good), max_images - max_images // 2))
    shown = _worst_and_spread(anomalous, shown_anomalous)
    shown += _worst_and_spread(good, min(len(good), max_images - shown_anomalous))
    side = _photograph_side(test, shown)
    return [
        _card(
            test,
            i,
            {name: _heat_url(named[i], ranges[name]) for name, named in maps.items()},
            side=side,
        )
        for i in shown
    ]


def _worst_and_spread(members: list[int], count: int) -> list[int]:
    """The first two thirds of `count` from the front, the others spread evenly over the rest.

    The reader sees the errors and also typical images.
    """
    if count >= len(members):
        return members
    worst = count - count // 3
    spread = np.linspace(worst, len(members) - 1, count - worst + 1)[1:].round().astype(int)
    return members[:worst] + [members[i] for i in spread]


def _photograph_side(test: ScoredImages, shown: Sequence[int]) -> int:
    """The largest side with which all photographs fit the file, by a sample of them."""
    sample = shown[:: max(1, len(shown) // _SAMPLED)]
    for side in _PHOTOGRAPH_SIDES:
        sizes = [len(_photograph_url(test.images[i], side)[0]) for i in sample]
        if sum(sizes) * len(shown) <= _PICTURE_BYTES * len(sample):
            return side
    return _PHOTOGRAPH_SIDES[-1]


def _card(test: ScoredImages, i: int, heats: dict[str, str], *, side: int) -> _Card:
    url, (width, height) = _photograph_url(test.images[i], side)
    mask = test.masks[i]
    return _Card(
        name=test.names[i],
        kind=_kind_of(test, i),
        label=int(test.labels[i]),
        score=float(test.scores[i]),
        image=url,
        heats=heats,
        outline=None if mask is None or not mask.any() else _outline_url(mask, (width, height)),
        boxes=[] if test.boxes is None else test.boxes[i],
        width=width,
        height=height,
    )


def _photograph_url(image: UInt8[np.ndarray, "h w 3"], side: int) -> tuple[str, tuple[int, int]]:
    picture = Image.fromarray(image)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _data_url(picture, "JPEG", quality=82, optimize=True), picture.size


def _heat_url(anomaly_map: Float32[np.ndarray, "_ _"], heat_range: tuple[float, float]) -> str:
    small = Image.fromarray(anomaly_map)
    small.thumbnail((_MAP_SIDE, _MAP_SIDE), Image.Resampling.BILINEAR)
    # A palette takes a third of the bytes of RGBA; every fourth color, as it takes bytes too.
    step = 256 // _MAP_COLORS
    colors = palette()[::step]
    indices = color_indices(np.asarray(small), *heat_range) // step
    picture = Image.fromarray(indices, mode="P")
    picture.putpalette(colors[:, :3].tobytes(), rawmode="RGB")
    return _data_url(picture, "PNG", transparency=colors[:, 3].tobytes(), optimize=True)


def _outline_url(mask: Bool[np.ndarray, "_ _"], size: tuple[int, int]) -> str:
    # Every marked pixel must survive the reduction, so any mean above zero counts.
    reduced = Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BOX)
    inside = Image.fromarray(np.asarray(reduced) > 0).convert("L")
    grown = np.asarray(inside.filter(ImageFilter.MaxFilter(5)))
    line = ((grown > 0) & (np.asarray(inside) == 0)).astype(np.uint8)
    picture = Image.fromarray(line, mode="P")
    picture.putpalette(bytes((0, 0, 0, *LINE_COLOR)), rawmode="RGB")
    return _data_url(picture, "PNG", transparency=bytes((0, 255)), bits=1, optimize=True)


def _data_url(picture: Image.Image, kind: str, **options: object) -> str:
    encoded = io.BytesIO()
    picture.save(encoded, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(encoded.getvalue()).decode()}"

"""One HTML file that shows how well a detector does on a test split, and where it errs."""

import base64
import io
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import NamedTuple

import jinja2
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8
from PIL import Image, ImageFilter
from sklearn.metrics import roc_curve

from efficientad_jax.atomic_file import write_atomically
from efficientad_jax.errors import InputError
from efficientad_jax.evaluation import Metrics
from efficientad_jax.heatmap import color_indices, palette

_THUMB_SIDE = 256  # Pixels of the longer side.
_MAP_SIDE = 128  # A map carries no finer detail than the networks' 56 x 56; the browser smooths.
_BINS = 40
_OUTLINE_COLOR = (0, 229, 255)  # Cyan: the one hue that inferno does not hold.


class ScoredImages(NamedTuple):
    """A test split with what the detector said about it; entry i of each field is image i.

    Attributes:
      names: what the reader knows the image by, e.g. the path within the data set.
      labels: 0 for good, 1 for anomalous.
      defects: the kind of defect, or an empty string.
      scores: the image scores; higher is more anomalous.
      images: uint8 RGB, at the model's input size.
      maps: float32 anomaly maps, of any size; each is shown stretched over its image.
      masks: True on the true defect, of any size; None where unknown.
    """

    names: Sequence[str]
    labels: Int[np.ndarray, "n"]
    defects: Sequence[str]
    scores: Float[np.ndarray, "n"]
    images: UInt8[np.ndarray, "n h w 3"]
    maps: Sequence[Float32[np.ndarray, "_ _"]]
    masks: Sequence[Bool[np.ndarray, "_ _"] | None]


def write_report(
    path: str | os.PathLike[str],
    title: str,
    metrics: Metrics,
    baselines: Mapping[str, float | None],
    facts: Mapping[str, str],
    test: ScoredImages,
    threshold: float | None = None,
    max_images: int = 60,
) -> None:
    """Writes the report: one self-contained HTML file that needs no network.

    It holds the figures beside those of trivial baselines, the scores' histogram and ROC curve
    with a threshold to move, and a gallery of the worst errors with their anomaly maps. Equal
    arguments give equal bytes.

    Args:
      path: where to write; the file appears complete or not at all.
      title: heading, e.g. "EfficientAD-S on magnetic tiles".
      metrics: what `evaluation.evaluate` returned for `test`.
      baselines: image AU-ROC of trivial detectors on the same split, by name, in [0, 1].
      facts: what else the reader should know (data set, sizes, versions), by name.
      test: the images and what the detector said about them.
      threshold: where the threshold starts, a score >= it counting as anomalous; None for the
        one with the best F1, or where there is none, the highest score.
      max_images: at most that many images in the gallery.

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
    # float64, as in the browser: both must find the same scores at the threshold.
    good = np.sort(test.scores[test.labels == 0].astype(np.float64))
    anomalous = np.sort(test.scores[test.labels == 1].astype(np.float64))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("efficientad_jax").joinpath("report.html.jinja").read_text("utf-8")
    html = environment.from_string(source).render(
        title=title,
        metrics=metrics,
        baselines=baselines,
        facts=facts,
        threshold=threshold,
        origin=origin,
        low=low,
        high=high,
        clipped=bool(test.scores.max() > high),
        good=[float(score) for score in good],
        anomalous=[float(score) for score in anomalous],
        false_alarms=int(np.sum(good >= threshold)),
        missed=int(np.sum(anomalous < threshold)),
        bars=_histogram(good, anomalous, low, high),
        roc=_roc_points(test.scores, test.labels),
        sections=_gallery(test, max_images),
        heat_range=_heat_range(test),
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
    """An image of the gallery; the three pictures are data URLs."""

    name: str
    defect: str
    label: int
    score: float
    peak: float
    image: str
    heat: str
    outline: str | None
    width: int
    height: int


class _Section(NamedTuple):
    """One class in the gallery: its cards and how many images it has in all."""

    kind: str
    cards: list[_Card]
    total: int


def _check(test: ScoredImages) -> None:
    lengths = {name: len(value) for name, value in test._asdict().items()}
    if not len(test.names):
        raise InputError("Report: found no test image, expected at least one.")
    for name, length in lengths.items():
        if length != len(test.names):
            raise InputError(
                f"Report: found {length} {name} for {len(test.names)} names, expected one each."
            )


def _axis_range(scores: Float[np.ndarray, "n"], threshold: float) -> tuple[float, float]:
    # One extreme defect must not squeeze all others into a single bar: what lies far above the
    # bulk of the scores is counted in the last bin.
    low, bulk, top = float(scores.min()), float(np.quantile(scores, 0.95)), float(scores.max())
    high = min(top, low + 1.5 * (bulk - low)) if bulk > low else top
    low, high = min(low, threshold), max(high, threshold)
    if not low < high:
        margin = max(abs(low), 1.0) * 0.5
        low, high = low - margin, high + margin
    return low, high


def _histogram(
    good: Float[np.ndarray, "g"], anomalous: Float[np.ndarray, "a"], low: float, high: float
) -> list[_Bar]:
    edges = np.linspace(low, high, _BINS + 1)
    counts = {
        kind: np.histogram(np.minimum(scores, high), bins=edges)[0]
        for kind, scores in (("good", good), ("anomalous", anomalous))
    }
    bars = []
    for kind in counts:
        # Each class at its own scale: they are seldom of equal size or spread.
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
    """Corners of the ROC curve in a plot of 100 x 100 units, y downwards; None for one class."""
    if labels.min() == labels.max():
        return None
    false_alarms, found, _ = roc_curve(labels, scores)
    return [
        (round(100 * float(x), 2), round(100 - 100 * float(y), 2))
        for x, y in zip(false_alarms, found, strict=True)
    ]


def _heat_range(test: ScoredImages) -> tuple[float, float]:
    # One range for all images, so that their colors compare. Quantiles of the maps' peaks: the
    # quietest good image stays clear, one extreme defect does not drain the color of the rest.
    peaks = np.array([anomaly_map.max() for anomaly_map in test.maps], np.float64)
    good = peaks[test.labels == 0]
    low = float(np.quantile(good if good.size else peaks, 0.05))
    high = float(np.quantile(peaks, 0.95))
    return (low, high) if low < high else (low, low + max(abs(low), 1.0))


def _gallery(test: ScoredImages, max_images: int) -> list[_Section]:
    order = np.argsort(test.scores, kind="stable")
    anomalous = [int(i) for i in order if test.labels[i] == 1]  # Lowest first: the worst misses.
    good = [int(i) for i in order[::-1] if test.labels[i] == 0]  # Highest first: false alarms.
    shown_anomalous = min(len(anomalous), max(max_images - len(good), max_images - max_images // 2))
    shown_good = min(len(good), max_images - shown_anomalous)
    heat_range = _heat_range(test)
    sections = []
    for kind, members, count in (
        ("anomalous", anomalous, shown_anomalous),
        ("good", good, shown_good),
    ):
        cards = [_card(test, i, heat_range) for i in _worst_and_spread(members, count)]
        if members:
            sections.append(_Section(kind=kind, cards=cards, total=len(members)))
    return sections


def _worst_and_spread(members: list[int], count: int) -> list[int]:
    """The first two thirds of `count` from the front, the others spread evenly over the rest.

    So the reader sees the errors, and also what the typical image looks like.
    """
    if count >= len(members):
        return members
    worst = count - count // 3
    spread = np.linspace(worst, len(members) - 1, count - worst + 1)[1:].round().astype(int)
    return members[:worst] + [members[i] for i in spread]


def _card(test: ScoredImages, i: int, heat_range: tuple[float, float]) -> _Card:
    picture = Image.fromarray(test.images[i])
    picture.thumbnail((_THUMB_SIDE, _THUMB_SIDE), Image.Resampling.LANCZOS)
    mask = test.masks[i]
    return _Card(
        name=test.names[i],
        defect=test.defects[i],
        label=int(test.labels[i]),
        score=float(test.scores[i]),
        peak=float(test.maps[i].max()),
        image=_data_url(picture, "JPEG", quality=82, optimize=True),
        heat=_heat_url(test.maps[i], heat_range),
        outline=None if mask is None or not mask.any() else _outline_url(mask, picture.size),
        width=picture.width,
        height=picture.height,
    )


def _heat_url(anomaly_map: Float32[np.ndarray, "_ _"], heat_range: tuple[float, float]) -> str:
    small = Image.fromarray(anomaly_map)
    small.thumbnail((_MAP_SIDE, _MAP_SIDE), Image.Resampling.BILINEAR)
    picture = Image.fromarray(color_indices(np.asarray(small), *heat_range), mode="P")
    # 256 colors lose nothing here and take a third of the bytes of RGBA.
    picture.putpalette(palette()[:, :3].tobytes(), rawmode="RGB")
    return _data_url(picture, "PNG", transparency=palette()[:, 3].tobytes(), optimize=True)


def _outline_url(mask: Bool[np.ndarray, "_ _"], size: tuple[int, int]) -> str:
    # Any marked pixel must survive the reduction, so the mean is taken and zero is the limit.
    reduced = Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BOX)
    inside = Image.fromarray(np.asarray(reduced) > 0).convert("L")
    grown = np.asarray(inside.filter(ImageFilter.MaxFilter(5)))
    line = ((grown > 0) & (np.asarray(inside) == 0)).astype(np.uint8)
    picture = Image.fromarray(line, mode="P")
    picture.putpalette(bytes((0, 0, 0, *_OUTLINE_COLOR)), rawmode="RGB")
    return _data_url(picture, "PNG", transparency=bytes((0, 255)), bits=1, optimize=True)


def _data_url(picture: Image.Image, kind: str, **options: object) -> str:
    encoded = io.BytesIO()
    picture.save(encoded, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(encoded.getvalue()).decode()}"

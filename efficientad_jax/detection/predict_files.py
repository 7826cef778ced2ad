"""Detection in image files: writes a heat map of each image and a table of all scores."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

from efficientad_jax.data.framing import seen_size
from efficientad_jax.data.framing_file import own_mask_in_input, own_mask_of
from efficientad_jax.data.image_rows import ImageRows, rows_of_array, rows_of_file
from efficientad_jax.detection.detector import BATCH_SIZE, Detector
from efficientad_jax.detection.heatmap import Complain, Task, save_picture
from efficientad_jax.detection.regions.components import Region, region_mask
from efficientad_jax.detection.regions.files import ImageRegions, RegionFiles
from efficientad_jax.detection.threshold import (
    RegionRule,
    Threshold,
    is_anomalous,
    required_rule,
)
from efficientad_jax.detection.tiling import chosen_overlap, compute_tiled_maps, enlarge
from efficientad_jax.errors import InputError, TooManyPixelsError, stops_all_writing
from efficientad_jax.storage.table import row_writer

# Pixels that are decoded at a time: a batch of images, or fewer if they are large.
_MOST_PIXELS = 1 << 25

_COLUMNS = ("image", "score", "heatmap", "anomalous")


def predict_files(
    detector: Detector,
    tasks: Sequence[Task],
    scores: Path,
    *,
    low: float,
    high: float,
    complain: Complain,
    overlap: int | None = None,
    region_files: RegionFiles | None = None,
    own_masks: Mapping[str, Path] | None = None,
) -> int:
    """Detects in images, writes their pictures, and their scores to a CSV file as it goes.

    An earlier file is replaced when the first images are scored. From then on the file holds
    complete lines at any time, also after an interruption: one for every scored image.

    Args:
      detector: calibrated.
      tasks: of `plan_pictures`.
      scores: the CSV file; its columns are image, score, heatmap (empty without a picture) and
        anomalous: 1 or 0, or empty if the detector has no threshold.
      low: map value of the first color.
      high: map value of the last color.
      complain: is called with a line per image that cannot be read or whose picture cannot be
        written; the latter has its line in the CSV file all the same.
      overlap: of the tiles that images are cut into, in pixels (see `detect_tiled`); None resizes
        images to the detector's input instead, unless the detector itself cuts them into tiles.
      region_files: open, for the regions of images, which pictures then show; None for none.
      own_masks: of `list_own_masks`, for images that are not cut into tiles; None for none.

    Returns:
      The number of images that were complained of.

    Raises:
      OSError: the scores cannot be written, or no picture can as the disk is full or read-only.
    """
    overlap = chosen_overlap(detector.spec, overlap) if detector.framing.fit == "tile" else overlap
    write_rows = row_writer(scores, _COLUMNS)
    failed = 0

    def note(line: str) -> None:
        nonlocal failed
        failed += 1
        complain(line)

    most = BATCH_SIZE if overlap is None else 1
    for chunk in _opened(detector, tasks, note, most_images=most, own_masks=own_masks):
        _predict_chunk(
            detector,
            chunk,
            write_rows,
            note=note,
            low=low,
            high=high,
            overlap=overlap,
            region_files=region_files,
        )
    write_rows([])
    return failed


class _Opened(NamedTuple):
    """An image, and the pixels of the networks' input that its own mask ignores, if it has one."""

    task: Task
    rows: ImageRows
    own_mask: Bool[np.ndarray, "_ _"] | None


class _Scored(NamedTuple):
    task: Task
    image: ImageRows
    score: float
    anomaly_map: Float32[np.ndarray, "h w"] | None
    regions: tuple[Region, ...]


_Row = tuple[str, str, str, str]


def _predict_chunk(
    detector: Detector,
    chunk: list[_Opened],
    write_rows: Callable[[list[_Row]], None],
    *,
    note: Complain,
    low: float,
    high: float,
    overlap: int | None,
    region_files: RegionFiles | None,
) -> None:
    """Scores images, draws their pictures and writes their lines; see `predict_files`."""
    scored = list(_scored(detector, chunk, note, overlap=overlap, region_files=region_files))
    pictures: list[str] = []

    def write() -> None:
        write_rows(_rows(detector.threshold, scored, pictures))
        if region_files is not None:
            region_files.add([_regions_of(detector.threshold, each) for each in scored])

    try:
        for each in scored:
            picture = _draw_picture(each, note, low=low, high=high)
            pictures.append(picture)
            if region_files is not None and region_files.needs_masks:
                _write_mask(each, region_files, detector.region_rule, complain=note)
    except BaseException:
        # All of these images have scores. The first error counts, a second one does not.
        with contextlib.suppress(OSError):
            write()
        raise
    write()


def _opened(
    detector: Detector,
    tasks: Sequence[Task],
    complain: Complain,
    *,
    most_images: int,
    own_masks: Mapping[str, Path] | None,
) -> Iterator[list[_Opened]]:
    """The readable images, in chunks of at most so many.

    A chunk is emptied when the next one is asked for: images of two are never in memory.
    """
    chunk, pixels = [], 0
    for task in tasks:
        # An image that is scored by itself and not drawn need not be in memory as a whole.
        in_memory = most_images > 1 or task.picture is not None
        opened = _open(detector, task, complain, in_memory=in_memory, own_masks=own_masks)
        if opened is None:
            continue
        size = opened.rows.size[0] * opened.rows.size[1]
        if chunk and pixels + size > _MOST_PIXELS:
            yield chunk
            chunk.clear()
            pixels = 0
        chunk.append(opened)
        pixels += size
        del opened
        if len(chunk) == most_images or pixels >= _MOST_PIXELS:
            yield chunk
            chunk.clear()
            pixels = 0
    if chunk:
        yield chunk


def _open(
    detector: Detector,
    task: Task,
    complain: Complain,
    *,
    in_memory: bool,
    own_masks: Mapping[str, Path] | None,
) -> _Opened | None:
    """An image, decoded or to be read in parts; None if it or its mask cannot be read."""
    try:
        rows = None if in_memory else rows_of_file(task.image)
        rows = rows or rows_of_array(detector.decode(task.image))
        if own_masks is None:
            return _Opened(task, rows, None)
        name, framing = _name_of(task).as_posix(), detector.framing
        whole = own_mask_of(own_masks, framing, name, size=rows.size)
        own_mask = own_mask_in_input(framing, whole, detector.spec.input_size)
        # Refuses one that leaves no patch to see, which would end the whole batch.
        detector.ignored_in([seen_size(framing, rows.size)], own_mask[None])
        return _Opened(task, rows, own_mask)
    except TooManyPixelsError as error:
        complain(f"{error}; --max-pixels accepts larger ones")
    except InputError as error:
        complain(str(error))
    except MemoryError:
        complain(_no_memory(f"image {task.image}", "its pixels"))
    return None


def _scored(
    detector: Detector,
    chunk: list[_Opened],
    complain: Complain,
    *,
    overlap: int | None,
    region_files: RegionFiles | None,
) -> Iterator[_Scored]:
    """The images of a chunk with their scores and regions, and maps for those that are drawn."""

    def is_map_needed(task: Task) -> bool:
        return task.picture is not None or region_files is not None

    def finished(
        task: Task, rows: ImageRows, score: float, anomaly_map: Float32[np.ndarray, "h w"] | None
    ) -> _Scored:
        regions: tuple[Region, ...] = ()
        if region_files is not None and anomaly_map is not None:
            rule = required_rule(detector.region_rule)
            regions = rule.find(anomaly_map, polygons=region_files.needs_polygons)
            if task.picture is None and not region_files.needs_masks:
                anomaly_map = None  # Maps of large images take much memory.
        return _Scored(task, rows, score, anomaly_map, regions)

    if overlap is None:
        resized = [
            detector.network_input(rows.read(0, rows.size[0]), own_mask=own_mask)
            for _, rows, own_mask in chunk
        ]
        sizes = [rows.size if is_map_needed(task) else None for task, rows, _ in chunk]
        seen = [seen_size(detector.framing, rows.size) for _, rows, _ in chunk]
        masks = [own_mask for _, _, own_mask in chunk if own_mask is not None]
        own_masks = np.stack(masks) if masks else None
        detections = detector.detect_resized(
            np.stack(resized), sizes, seen=seen, own_masks=own_masks
        )
        for (task, rows, _), detection in zip(chunk, detections, strict=True):
            needed = detection.anomaly_map if is_map_needed(task) else None
            yield finished(task, rows, detection.score, needed)
        return
    for task, rows, _ in chunk:
        try:
            tiled = compute_tiled_maps(detector, rows, overlap, name=str(task.image))
        except InputError as error:  # of a file that is cut off and read tile by tile
            complain(str(error))
            continue
        needed = enlarge(detector, tiled, tiled.combined) if is_map_needed(task) else None
        yield finished(task, rows, tiled.score, needed)


def _draw_picture(scored: _Scored, complain: Complain, *, low: float, high: float) -> str:
    """Writes an image's picture; returns its name, empty if there is none.

    Raises:
      OSError: no picture can be written.
    """
    picture = scored.task.picture
    if picture is None or scored.anomaly_map is None:
        return ""
    pixels = scored.image.read(0, scored.image.size[0])
    try:
        boxes = [region.box for region in scored.regions]
        save_picture(picture, pixels, [scored.anomaly_map], low=low, high=high, boxes=boxes)
    except OSError as error:
        if stops_all_writing(error):
            raise
        complain(str(InputError(f"{picture}: {error.strerror}")))
        return ""
    except MemoryError:
        complain(_no_memory(str(picture), "the picture"))
        return ""
    return str(picture)


def _write_mask(
    scored: _Scored, files: RegionFiles, rule: RegionRule | None, *, complain: Complain
) -> None:
    """Writes the mask of an image's regions.

    Raises:
      OSError: no mask can be written.
    """
    assert rule is not None
    assert scored.anomaly_map is not None
    mask = region_mask(scored.anomaly_map, rule.threshold.limit, rule.smallest_area)
    try:
        files.write_mask(scored.task.image, _name_of(scored.task), mask)
    except InputError as error:
        complain(str(error))
    except OSError as error:
        if stops_all_writing(error):
            raise
        complain(str(InputError(f"{error.filename}: {error.strerror}")))


def _name_of(task: Task) -> Path:
    return Path(task.image.name) if task.name is None else task.name


def _regions_of(threshold: Threshold | None, scored: _Scored) -> ImageRegions:
    """The regions of an image, for their files."""
    task, size = scored.task, scored.image.size
    verdict = is_anomalous(threshold, scored.score)
    return ImageRegions(
        task.image, _name_of(task), size, scored.score, verdict, regions=scored.regions
    )


def _no_memory(name: str, need: str) -> str:
    return str(InputError(f"{name}: not enough memory for {need}; --no-pictures needs less"))


def _rows(
    threshold: Threshold | None, scored: Sequence[_Scored], pictures: Sequence[str]
) -> list[_Row]:
    """The lines of the CSV file; `pictures` may be fewer, if drawing was interrupted."""
    rows = []
    missing = [""] * (len(scored) - len(pictures))
    for each, picture in zip(scored, [*pictures, *missing], strict=True):
        verdict = is_anomalous(threshold, each.score)
        anomalous = "" if verdict is None else str(int(verdict))
        rows.append((str(each.task.image), f"{each.score:.6g}", picture, anomalous))
    return rows

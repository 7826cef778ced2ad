"""Scores images: a heat map next to each image, and a CSV file of scores.

    efficientad predict DETECTOR IMAGE_OR_FOLDER...
    efficientad predict DETECTOR IMAGES --output=FOLDER --false-alarm-rate=0.05
    efficientad predict DETECTOR IMAGES --no-pictures
    efficientad predict DETECTOR LARGE_IMAGES --tile --max-pixels=500000000
    efficientad predict DETECTOR IMAGES --output=FOLDER --regions=csv,json,coco,masks

`photo.jpg` gets `photo_heatmap.png` next to it, or in --output with the images' folders below it.
The column `anomalous` of the CSV file is 1 if the score reaches the detector's threshold, or the
threshold for --false-alarm-rate. Lines are added while the command runs: an interrupted run keeps
the scores it has. With --tile images are not resized, but cut into tiles of the input's size, as
they always are for a detector that was trained with config.model.fit = 'tile'. With --regions the
boxes of anomalous regions are drawn and written to files next to the CSV file. An image that cannot
be read, or a picture that cannot be written, is reported; the others are scored, and the exit
status is 1.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from PIL import Image

from efficientad_jax.commands.command_line import add_detector, print_error, whole_number
from efficientad_jax.data.files import is_heat_map
from efficientad_jax.data.framing_file import list_own_masks
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.heatmap import HIGH, LOW, plan_pictures
from efficientad_jax.detection.predict_files import predict_files
from efficientad_jax.detection.regions.files import FORMATS, RegionFiles
from efficientad_jax.detection.threshold import (
    RegionRule,
    region_summary,
    required_rule,
    summary,
)
from efficientad_jax.detection.tiling import chosen_overlap
from efficientad_jax.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the arguments."""
    add_detector(parser)
    add = parser.add_argument
    add("images", metavar="IMAGE", nargs="+", type=Path, help="an image or a folder of images")
    add(
        "--output",
        metavar="FOLDER",
        type=Path,
        help="folder for the heat maps (default: next to the images)",
    )
    add("--no-pictures", action="store_true", help="write the scores only, no heat maps")
    add(
        "--scores",
        metavar="FILE",
        default="scores.csv",
        help="CSV file to write, in --output if that is given (default: %(default)s)",
    )
    add(
        "--low",
        default=LOW,
        type=float,
        help="value of an anomaly map that gets the first color (default: %(default)s)",
    )
    add(
        "--high",
        default=HIGH,
        type=float,
        help="value of an anomaly map that gets the last color (default: %(default)s)",
    )
    add(
        "--false-alarm-rate",
        metavar="RATE",
        type=float,
        help="choose the threshold for this rate, in (0, 1) (default: the detector's threshold)",
    )
    _add_region_arguments(parser)
    add(
        "--ignore-masks",
        metavar="FOLDER",
        type=Path,
        help="masks that are black where an image is ignored: A/7.png for the image A/7.jpg of a "
        "folder",
    )
    add("--tile", action="store_true", help="cut images into tiles instead of resizing them")
    add("--overlap", metavar="PIXELS", type=int, help="overlap of tiles")
    add(
        "--max-pixels",
        metavar="PIXELS",
        default=Image.MAX_IMAGE_PIXELS,
        type=whole_number(1),
        help="size limit of an image; raise it only for files from a source that you trust "
        "(default: %(default)s)",
    )


def _add_region_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--regions",
        metavar="FORMATS",
        type=_formats,
        help=f"write the anomalous regions of each image as some of {','.join(FORMATS)}",
    )
    add(
        "--region-false-positive-rate",
        metavar="RATE",
        type=float,
        help="choose the pixel threshold of --regions for this rate of good images with a region, "
        "in (0, 1) (default: the detector's pixel threshold)",
    )


def run(options: argparse.Namespace) -> int:
    """Scores the images; returns 1 if some could not be read, else 0."""
    if not options.low < options.high:
        raise InputError(f"--low={options.low} --high={options.high}: expected low below high")
    _check_region_flags(options)
    detector = Detector.load(options.detector)
    is_tiled = options.tile or detector.framing.fit == "tile"
    if options.overlap is not None and not is_tiled:
        raise InputError(f"--overlap={options.overlap}: is of tiles, expected --tile with it")
    own_masks = None if options.ignore_masks is None else list_own_masks(options.ignore_masks)
    if own_masks is not None and is_tiled:
        raise InputError("--ignore-masks: is not of tiles, expected images that are not cut")
    if options.false_alarm_rate is not None:
        detector = detector.with_threshold(options.false_alarm_rate)
    if options.region_false_positive_rate is not None:
        detector = detector.with_region_rate(options.region_false_positive_rate)
    rule = required_rule(detector.region_rule) if options.regions else None
    overlap = chosen_overlap(detector.spec, options.overlap) if is_tiled else None
    scores = (options.output or Path()) / options.scores
    tasks, failed = plan_pictures(
        options.images, options.output, print_error, draws_pictures=not options.no_pictures
    )
    region_files = None if rule is None else _region_files(rule, scores.parent, options.regions)
    with _pixel_limit(options.max_pixels), region_files or nullcontext():
        failed += predict_files(
            detector,
            tasks,
            scores,
            low=options.low,
            high=options.high,
            complain=print_error,
            overlap=overlap,
            region_files=region_files,
            own_masks=own_masks,
        )
    if detector.threshold is not None:
        of_tile = is_tiled and detector.framing.fit != "tile"
        rates = "; these rates are those of one tile" if of_tile else ""
        print(f"threshold {summary(detector.threshold)}{rates}")
    if rule is not None:
        print(f"pixel threshold {region_summary(rule)}")
    skipped = sum(is_heat_map(path) for path in options.images)
    heat_maps = f", {skipped} heat maps left out" if skipped else ""
    print(f"{len(tasks)} images, {failed} failures{heat_maps}: {scores}")
    return 1 if failed else 0


def _formats(text: str) -> tuple[str, ...]:
    """The type of --regions: some of `FORMATS`, separated by commas."""
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        expected = f"some of {', '.join(FORMATS)}, separated by commas"
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}: expected {expected}")
    return names


def _check_region_flags(options: argparse.Namespace) -> None:
    """Checks flags that need each other.

    Raises:
      InputError: one of them is missing.
    """
    if options.regions and "masks" in options.regions and options.output is None:
        raise InputError("--regions=masks: needs a folder for the masks, expected --output with it")
    rate = options.region_false_positive_rate
    if rate is not None and not options.regions:
        raise InputError(
            f"--region-false-positive-rate={rate}: is of regions, expected --regions with it"
        )


def _region_files(rule: RegionRule, folder: Path, formats: tuple[str, ...]) -> RegionFiles:
    limit = rule.threshold.limit
    return RegionFiles(folder, formats, limit, smallest_area=rule.smallest_area)


@contextmanager
def _pixel_limit(most: int) -> Iterator[None]:
    """Inside the context, images of so many pixels are decoded; Pillow checks it in many places."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = most
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before

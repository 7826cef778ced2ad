"""Draws the figures of the paper for your detectors: PNG, PDF or SVG, by the ending of --output.

    python -m experiments.figures latency --table=runs/reproduction/table_1.csv \
        --benchmark=runs/benchmark/benchmark.json --output=latency.pdf          Figure 1
    python -m experiments.figures receptive_field PHOTOGRAPHS --output=field.png    Figure 3
    python -m experiments.figures hard_features --workdir=runs/mine IMAGE... --output=hard.png
                                                                                Figure 4
    python -m experiments.figures maps --detector=runs/mine/detector IMAGE... --output=maps.png
                                                                                Figure 5
    python -m experiments.figures regions --detector=runs/mine/detector IMAGE... --output=boxes.png
                                                                                docs/regions.md

IMAGE is a file or a folder. `hard_features` shows the checkpoints of the training that still exist:
the newest `config.train.checkpoints_kept`. `regions` shows --count of the images, evenly spaced,
with the true defects where they lie in MVTec AD's layout: for `test/KIND/NAME.png` the mask is
`ground_truth/KIND/NAME_mask.png`.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.figure
import numpy as np
from absl import flags
from jaxtyping import Bool, UInt8

from efficientad_jax.config import read_config
from efficientad_jax.data.decoding import decode_image, decode_mask
from efficientad_jax.data.files import list_images
from efficientad_jax.data.loading import load_images
from efficientad_jax.detection.detector import Detector
from efficientad_jax.errors import InputError
from efficientad_jax.figures.drawing import check_figure_path, save_figure
from efficientad_jax.figures.hard_features import count_hard_features, draw_hard_features
from efficientad_jax.figures.latency import Point, draw_latency
from efficientad_jax.figures.maps import draw_maps
from efficientad_jax.figures.receptive_field import (
    absolute_gradient,
    draw_receptive_field,
    mean_feature_map,
    receptive_window,
)
from efficientad_jax.figures.regions import RegionsOfImage, draw_regions
from efficientad_jax.networks.pdn import NAMES, SIZES, PatchDescriptionNetwork, output_size
from efficientad_jax.networks.teacher import load_teacher
from efficientad_jax.reproduction.rendering import read_cells
from efficientad_jax.reproduction.speed import read_benchmark
from efficientad_jax.runs.workdir import Workdir
from efficientad_jax.training.loop import saved_students
from experiments import run

_OUTPUT = flags.DEFINE_string(
    "output", None, "file to write; its name ends in .png, .pdf or .svg", required=True
)
_TABLE = flags.DEFINE_string("table", "", "latency: table_1.csv that experiments.reproduce wrote")
_BENCHMARK = flags.DEFINE_string(
    "benchmark", "", "latency: benchmark.json that experiments.benchmark wrote"
)
_TEACHER = flags.DEFINE_string(
    "teacher", "", "receptive_field: file of the teacher; default: the packaged one"
)
_SIZE = flags.DEFINE_enum("size", "small", SIZES, "receptive_field: size of the teacher")
_WORKDIR = flags.DEFINE_string("workdir", "", "hard_features: work directory of experiments.train")
_DETECTOR = flags.DEFINE_string("detector", "", "maps, regions: folder of a detector")
_COUNT = flags.DEFINE_integer("count", 10, "regions: number of images", lower_bound=1)
_HIGH = flags.DEFINE_float("high", None, "maps: upper end of the color scale")

_INPUT_SIZE = (256, 256)
# The gradient is computed in the middle of the images; with these numbers it takes seconds.
_GRADIENT_SIDE, _GRADIENT_IMAGES, _GRADIENT_CHANNELS = 128, 8, 24


def main(arguments: list[str]) -> int:
    """Draws one figure."""
    kinds = {
        "latency": _latency,
        "receptive_field": _receptive_field,
        "hard_features": _hard_features,
        "maps": _maps,
        "regions": _regions,
    }
    kind = arguments[0] if arguments else ""
    if kind not in kinds:
        raise InputError(f"figure {kind!r}: expected one of {', '.join(kinds)}")
    output = Path(_OUTPUT.value)
    check_figure_path(output)
    save_figure(kinds[kind](arguments[1:]), output)
    print(output)
    return 0


def _latency(arguments: Sequence[str]) -> matplotlib.figure.Figure:
    if arguments:
        raise InputError(f"unexpected argument {arguments[0]!r}: expected only flags")
    if not _TABLE.value and not _BENCHMARK.value:
        return draw_latency({}, "")
    if not _TABLE.value or not _BENCHMARK.value:
        raise InputError("figure 'latency': needs --table and --benchmark, or neither of them")
    cells = read_cells(Path(_TABLE.value))
    benchmarked = read_benchmark(Path(_BENCHMARK.value))
    points = {}
    for size, name in NAMES.items():
        detection, latency = cells.get((name, "detection")), benchmarked.speeds[size].latency
        if detection is None or latency is None:
            missing = "AU-ROC over all collections" if detection is None else "latency"
            print(f"{name}, ours, is omitted: no {missing}")
        else:
            points[f"{name}, ours"] = Point(latency.mean, detection.mean, detection.deviation)
    return draw_latency(points, benchmarked.measured_on)


def _receptive_field(arguments: Sequence[str]) -> matplotlib.figure.Figure:
    teacher = load_teacher(_TEACHER.value, _SIZE.value)  # pyright: ignore
    network = PatchDescriptionNetwork(teacher.size, teacher.out_channels)
    images = _resized(arguments, _INPUT_SIZE)
    margin = (_INPUT_SIZE[0] - _GRADIENT_SIDE) // 2
    middle = images[:_GRADIENT_IMAGES, margin:-margin, margin:-margin]
    row, column = (side // 2 for side in output_size(_GRADIENT_SIDE, _GRADIENT_SIDE))
    spaced = np.linspace(0, teacher.out_channels - 1, _GRADIENT_CHANNELS, dtype=int)
    channels = np.unique(spaced).tolist()  # a teacher may have fewer
    return draw_receptive_field(
        absolute_gradient(
            network, teacher.params, middle, position=(row, column), channels=channels
        ),
        receptive_window(row, column),
        images,
        feature_map=mean_feature_map(network, teacher.params, images),
    )


def _hard_features(arguments: Sequence[str]) -> matplotlib.figure.Figure:
    if not _WORKDIR.value:
        raise InputError("figure 'hard_features': needs --workdir, the folder of a training")
    workdir = Path(_WORKDIR.value).absolute()
    detector = Detector.load(Workdir(workdir).detector)
    config = read_config(detector.config)
    spec, networks = detector.spec, detector.networks
    images = _resized(arguments, spec.input_size)
    # The checkpoint of the last step is the detector's student itself.
    students = dict(saved_students(workdir, config, networks, input_size=spec.input_size))
    students[config.train.steps] = detector.params.student
    counts = {
        f"step {step}": count_hard_features(
            networks,
            detector.params.teacher,
            student,
            images=images,
            p_hard=config.losses.p_hard,
        )
        for step, student in students.items()
    }
    return draw_hard_features(images, counts, spec.out_channels, padding=spec.padding)


def _regions(arguments: Sequence[str]) -> matplotlib.figure.Figure:
    detector = _detector("regions")
    files = _files(arguments)
    chosen = np.linspace(0, len(files) - 1, min(_COUNT.value, len(files))).round().astype(int)
    shown = []
    for file in (files[i] for i in chosen):
        image = detector.decode(file)
        kind = file.absolute().parent.name
        shown.append(RegionsOfImage(kind, image, detector(image), _mask_of(file)))
    return draw_regions(shown)


def _mask_of(file: Path) -> Bool[np.ndarray, "h w"] | None:
    """The mask of a test image in MVTec AD's layout, None where there is none."""
    kind = file.absolute().parent
    names = (f"{file.stem}_mask.png", f"{file.stem}.png")
    masks = (kind.parent.parent / "ground_truth" / kind.name / name for name in names)
    mask = next((path for path in masks if path.is_file()), None)
    return None if mask is None else decode_mask(mask)


def _detector(figure: str) -> Detector:
    if not _DETECTOR.value:
        raise InputError(f"figure {figure!r}: needs --detector, a folder that a training wrote")
    return Detector.load(_DETECTOR.value)


def _maps(arguments: Sequence[str]) -> matplotlib.figure.Figure:
    detector = _detector("maps")
    images = [decode_image(path) for path in _files(arguments)]
    detections = detector(images)
    return draw_maps(images, detections, _HIGH.value)


def _resized(arguments: Sequence[str], size: tuple[int, int]) -> UInt8[np.ndarray, "n h w 3"]:
    return load_images(_files(arguments), size)


def _files(arguments: Sequence[str]) -> list[Path]:
    paths = [Path(argument) for argument in arguments]
    files = [file for path in paths for file in (list_images(path) if path.is_dir() else [path])]
    if not files:
        raise InputError("no images given: expected files or folders after the figure's name")
    return files


if __name__ == "__main__":
    run(main, takes_arguments=True)
